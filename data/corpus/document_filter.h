#pragma once
// Which documents of a corpus are taken: a pure function of the document, so that neither order nor ranks matter.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "data/corpus/reader.h"

namespace ttt::data {

struct DocumentFilter {
  /// Share of each subset to take, in [0, 1], drawn by a hash of (seed, text). If any is named, others have
  /// that of "*", or 0.
  std::map<std::string, double> subset_shares;
  double sample = 1;  // of everything, likewise
  std::int64_t min_bytes = 0;
  std::int64_t max_bytes = 0;  // 0: any
  std::uint64_t seed = 0;

  /// Why `document` is left out, in a few words for counting; "" if it is taken.
  [[nodiscard]] std::string reason_to_leave_out(const Document& document) const;
};

/// Uniform in [0, 1), by (seed, purpose, text).
double uniform_of_text(std::uint64_t seed, std::string_view purpose, std::string_view text);

}  // namespace ttt::data
