#include "data/corpus/large_blocks.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>

#include "core/base/log.h"

namespace ttt::data {
namespace {

constexpr std::chrono::milliseconds kGiveBackEvery{50};

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

LargeBlocks::~LargeBlocks() {
  thread_ = {};  // has ended
  for (const Block& block : blocks_) ::munmap(block.begin, block.num_bytes);
}

void* LargeBlocks::map(std::size_t num_bytes) {
  void* const begin = map_temporary_file(num_bytes);
  if (begin == nullptr) {
    log::warning("event=block_in_memory bytes={} reason=\"no room for temporary files\"",
                 num_bytes);
    return nullptr;
  }
  const std::lock_guard lock(mutex_);
  blocks_.push_back({begin, num_bytes});
  if (!thread_.joinable()) {
    thread_ = std::jthread([this](const std::stop_token& stop) { give_back_until(stop); });
  }
  return begin;
}

bool LargeBlocks::unmap(void* begin) {
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find(blocks_, begin, &Block::begin);
  if (found == blocks_.end()) return false;
  ::munmap(found->begin, found->num_bytes);
  blocks_.erase(found);
  return true;
}

void LargeBlocks::give_back_until(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (!stopped_.wait_for(lock, stop, kGiveBackEvery, [&] { return stop.stop_requested(); })) {
    // Of a file that is shared the pages leave this process, not their contents.
    for (const Block& block : blocks_) ::madvise(block.begin, block.num_bytes, MADV_DONTNEED);
  }
}

}  // namespace ttt::data
