#pragma once
// The bytes of a file, decompressed on the way if its name says so.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace ttt::data {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  /// Fills the beginning of `out`; returns how many bytes, 0 at the end.
  virtual std::size_t read(std::span<char> out) = 0;
};

/// `path` without the suffix of its compression: .zst or .gz.
std::string_view without_compression_suffix(std::string_view path);

/// .zst (any number of frames, windows up to 2^31) and .gz (any number of members) are decompressed.
/// Errors: 66, 77, 74 for the file, 65 for a damaged or truncated stream.
/// `bytes_read`, if not null, grows by the file's own bytes as they are read.
std::unique_ptr<ByteSource> open_byte_source(const std::string& path,
                                             std::atomic<std::int64_t>* bytes_read = nullptr);

}  // namespace ttt::data
