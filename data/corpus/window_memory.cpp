#include "data/corpus/window_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "core/base/log.h"

namespace ttt::data {
namespace {

constexpr std::size_t kGiveBackEvery = std::size_t{64} << 20;

// Null if there is no room or no such directory.
void* map_temporary_file(std::size_t num_bytes) {
  const char* const directory = std::getenv("TMPDIR");
  std::string path = (directory != nullptr ? directory : "/var/tmp") + std::string("/ttt-XXXXXX");
  const int file = ::mkostemp(path.data(), O_CLOEXEC);
  if (file < 0) return nullptr;
  ::unlink(path.c_str());
  // Reserved: a page without room on the disk would end the process when it is touched.
  const bool has_room = ::fallocate(file, 0, 0, static_cast<off_t>(num_bytes)) == 0;
  void* const begin = has_room
                          ? ::mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
                          : MAP_FAILED;
  ::close(file);
  return begin != MAP_FAILED ? begin : nullptr;
}

}  // namespace

WindowMemory::~WindowMemory() {
  for (const MappedBlock& block : mapped_) ::munmap(block.begin, block.num_bytes);
}

void* WindowMemory::allocate(std::size_t num_bytes) {
  if (num_bytes <= kMaxResident) return std::malloc(num_bytes);
  if (void* const begin = map_temporary_file(num_bytes)) {
    mapped_.push_back({begin, num_bytes});
    return begin;
  }
  log::warning("event=window_in_memory bytes={} reason=\"no room for temporary files\"", num_bytes);
  return std::malloc(num_bytes);
}

void WindowMemory::release(void* block) {
  const auto found = std::ranges::find(mapped_, block, &MappedBlock::begin);
  if (found == mapped_.end()) return std::free(block);
  ::munmap(found->begin, found->num_bytes);
  mapped_.erase(found);
}

void WindowMemory::decoded(std::size_t num_bytes) {
  since_given_back_ += num_bytes;
  if (since_given_back_ < kGiveBackEvery) return;
  since_given_back_ = 0;
  for (const MappedBlock& block : mapped_) ::madvise(block.begin, block.num_bytes, MADV_DONTNEED);
}

}  // namespace ttt::data
