#pragma once

#include <atomic>
#include <functional>
#include <string>

#include "data/corpus/reader.h"

namespace ttt::data {

/// Whether this program was built with its Parquet module.
bool reads_parquet();

/// As read_file_documents: every row is a document with its number as line; offsets are within its text. A null text is
/// rejected. Columns beside the text's and the subset's are not read. Memory: a page of each, whole, as it was written.
/// Errors: 65 for a damaged file, a page over 1 GiB and a text column that is missing or no string; 66 if the file is
/// missing or the module cannot be loaded.
void read_parquet(const std::string& file, const RecordFields& fields,
                  const std::function<void(Document&&)>& visit,
                  const std::function<void(const Rejection&)>& reject,
                  std::atomic<std::int64_t>* bytes_read);

}  // namespace ttt::data
