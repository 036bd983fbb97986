#pragma once
// Large reads and writes past the system's page cache. Through the cache a checkpoint would take as much memory as it has
// bytes, push out pages that are in use, and be read back from memory instead of the disk.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "data/files.h"

namespace ttt::data {

/// An existing file. Whole blocks of 4096 bytes go past the cache, what is less goes through it; so does everything where the
/// file system has no O_DIRECT. For one thread. Errors: those of fail_with_errno.
class DirectFile {
 public:
  enum class Use : std::uint8_t { kRead, kWrite };

  DirectFile(const std::string& path, Use use);

  void write_at(std::int64_t offset, std::span<const std::byte> bytes);
  /// Exactly out.size() bytes; a file that ends before is 65.
  void read_at(std::int64_t offset, std::span<std::byte> out);
  void sync() { cached_.sync(); }

 private:
  // The bytes that one call moves.
  struct Step {
    bool is_direct = false;
    std::size_t count = 0;
  };
  struct Free {
    void operator()(std::byte* bytes) const;
  };

  [[nodiscard]] Step step_at(std::int64_t offset, std::size_t remaining) const;
  [[nodiscard]] int descriptor(const Step& step) const;
  // After a call that failed with errno: returns if it is to be made again.
  void require_retry(const Step& step, const char* action);

  FileDescriptor cached_;
  FileDescriptor direct_;
  bool has_direct_ = false;
  std::unique_ptr<std::byte, Free> buffer_;  // aligned as the disk wants it
};

}  // namespace ttt::data
