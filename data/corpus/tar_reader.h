#pragma once
// The entries of a tar archive as they go by in a stream: nothing is extracted, no name is opened.

#include <cstdint>
#include <functional>
#include <string>

#include "data/corpus/byte_source.h"

namespace ttt::data {

struct TarEntry {
  std::string name;  // as the archive has it: only for messages
  /// "" for a regular file or a directory, else what it is: "a symbolic link".
  std::string irregular;
  bool is_file = false;
  std::int64_t num_bytes = 0;
  /// The contents of a file, which must have `num_bytes`. To be called at most once, during the visit.
  std::function<std::string()> read;
};

/// Visits every entry of `source` in order. `path` names it in messages. 65 for a stream that is no tar
/// archive, is damaged or ends early.
void read_tar(ByteSource& source, const std::string& path,
              const std::function<void(TarEntry&)>& visit);

}  // namespace ttt::data
