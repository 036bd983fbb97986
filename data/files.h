#pragma once
// Small files written so that a crash leaves the old one or the new one, never half of either.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

struct XXH3_state_s;  // of xxhash.h

namespace ttt::data {

/// Throws what `errno_value` means for a user: 66 if the path does not exist, 77 if it may not be
/// touched, 73 if something else is there, else 74. `action` completes "cannot ...": "open", "write", "rename".
[[noreturn]] void fail_with_errno(std::string_view action, const std::string& path,
                                  int errno_value);

/// Makes a directory for output, and its parents. 77 without permission, else 74: a file in the way is
/// no missing input.
void make_output_directory(const std::string& path);

/// An open file; closes on destruction.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  /// `flags` and `mode` as for open(2); O_CLOEXEC is added.
  FileDescriptor(const std::string& path, int flags, unsigned mode = 0644);
  ~FileDescriptor();
  FileDescriptor(FileDescriptor&& other) noexcept;
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;

  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::int64_t size_bytes() const;
  /// Reads exactly out.size() bytes at `offset`; a file that ends before is 65.
  void read_at(std::int64_t offset, std::span<std::byte> out) const;
  void write(std::span<const std::byte> bytes);
  void sync();
  /// Closes and reports what close(2) says, which a destructor cannot.
  void close();

 private:
  int fd_ = -1;
  std::string path_;
};

/// Writes `path` by way of a temporary file beside it, fsync and rename.
void write_file_atomically(const std::string& path, std::string_view contents);

/// Makes the names in a directory durable.
void fsync_directory(const std::string& path);

/// Makes the bytes of an existing file durable.
void fsync_file(const std::string& path);

/// Throws 74 unless the file has this content: for one that was just written.
void expect_content(const std::string& path, std::string_view content);

/// rename(2), then fsync of the directory of `to`.
void rename_durably(const std::string& from, const std::string& to);

/// The whole file; more than `limit_bytes` is 65.
std::string read_text_file(const std::string& path, std::int64_t limit_bytes);

/// Size in bytes; throws as fail_with_errno.
std::int64_t file_size_bytes(const std::string& path);

/// "1.10.8": the HDF5 library that this process uses.
std::string hdf5_version();

/// XXH3-128, 32 lower-case hexadecimal digits (what `xxhsum -H2` prints), of bytes that come in pieces.
class Xxh3Digest {
 public:
  Xxh3Digest();
  void update(std::span<const std::byte> bytes);
  [[nodiscard]] std::string hex() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};
/// The same of a file's bytes, and of bytes in memory.
std::string xxh3_128_hex_of_file(const std::string& path);
std::string xxh3_128_hex(std::span<const std::byte> bytes);

/// Offset of the first byte that is not UTF-8 (RFC 3629: no surrogates, no overlong forms, nothing
/// above U+10FFFF); the size if all are.
std::size_t find_invalid_utf8(std::string_view text);

}  // namespace ttt::data
