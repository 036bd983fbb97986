#pragma once
// Documents of the same bytes in a whole corpus, found in bounded memory by way of files of digests.

#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_set>
#include <vector>

#include "data/tokens/prepare_plan.h"

namespace ttt::data {

/// Writes the digest of every document of `part` (of one that is left out: zero) to `path`, whole or not at all.
void write_digests(const PreparePart& part, const PrepareOptions& options, const std::string& path);

/// digest_paths[p] is part p's. Writes to duplicate_paths[p] the numbers of the documents that are equal to
/// one before them, in the order of parts and documents. `max_in_memory` digests are held at a time.
void find_duplicates(const std::vector<std::string>& digest_paths,
                     const std::vector<std::string>& duplicate_paths,
                     std::size_t max_in_memory = std::size_t{1} << 23);

std::unordered_set<std::int64_t> read_duplicates(const std::string& path);

}  // namespace ttt::data
