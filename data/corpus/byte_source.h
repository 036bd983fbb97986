#pragma once
// The bytes of a file, decompressed on the way if it is zstd.

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace ttt::data {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  /// Fills the beginning of `out`; returns how many bytes, 0 at the end.
  virtual std::size_t read(std::span<char> out) = 0;
};

/// `zstd`: decompress. Throws 66, 77, 74 for the file, 65 for a damaged or truncated stream.
std::unique_ptr<ByteSource> open_byte_source(const std::string& path, bool zstd);

}  // namespace ttt::data
