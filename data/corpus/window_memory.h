#pragma once
// Memory for a decoder's window, of which zstd's can have 2 GiB (`zstd --ultra --long=31`).

#include <cstddef>
#include <vector>

namespace ttt::data {

/// Blocks over kMaxResident lie in unlinked files of the directory for temporary files ($TMPDIR, else /var/tmp), so that
/// the system can write them out and take the memory back; without room there in plain memory, which is logged.
class WindowMemory {
 public:
  static constexpr std::size_t kMaxResident = std::size_t{512} << 20;

  WindowMemory() = default;
  WindowMemory(const WindowMemory&) = delete;
  WindowMemory& operator=(const WindowMemory&) = delete;
  ~WindowMemory();

  /// Null without memory.
  void* allocate(std::size_t num_bytes);
  void release(void* block);
  /// To be told of what is decoded: now and then the files' pages are given back to the system, which keeps their contents.
  void decoded(std::size_t num_bytes);

 private:
  struct MappedBlock {
    void* begin;
    std::size_t num_bytes;
  };

  std::vector<MappedBlock> mapped_;
  std::size_t since_given_back_ = 0;
};

}  // namespace ttt::data
