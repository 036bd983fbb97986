#include "tests/support/simt/device_memory.h"

#include <sys/mman.h>

#include <cstring>
#include <map>

#include "core/base/error.h"

namespace ttt::simt {
namespace {

// Of addresses: blocks that were given back keep theirs.
constexpr std::int64_t kReserved = std::int64_t{1} << 34;
constexpr std::int64_t kPage = 4096;  // the unit of mprotect

// One reservation, in which neighbours open and close with one call.
class Arena {
 public:
  explicit Arena(bool is_open) : is_open_(is_open) {}

  std::byte* take(std::int64_t bytes) {
    if (base_ == nullptr) {
      void* const base = mmap(nullptr, static_cast<std::size_t>(kReserved), PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (base == MAP_FAILED) return nullptr;
      base_ = static_cast<std::byte*>(base);
    }
    if (bytes > kReserved - used_ - kPage) return nullptr;
    const std::int64_t begin = used_;
    used_ += (bytes + kPage - 1) / kPage * kPage;
    blocks_[begin] = used_;
    if (!runs_.empty() && runs_.rbegin()->second == begin) {
      runs_.rbegin()->second = used_;
    } else {
      runs_[begin] = used_;
    }
    if (is_open_) protect(begin, used_, PROT_READ | PROT_WRITE);
    return base_ + begin;
  }

  void give(const std::byte* block) {
    const std::int64_t begin = block - base_;
    const std::int64_t end = blocks_.at(begin);
    blocks_.erase(begin);
    const auto run = std::prev(runs_.upper_bound(begin));
    const std::int64_t run_end = run->second;
    if (run->first == begin) {
      runs_.erase(run);
    } else {
      run->second = begin;
    }
    if (end < run_end) runs_[end] = run_end;
    protect(begin, end, PROT_NONE);
    madvise(base_ + begin, static_cast<std::size_t>(end - begin), MADV_DONTNEED);
  }

  void set_open(bool is_open) {
    is_open_ = is_open;
    for (const auto& [begin, end] : runs_) {
      protect(begin, end, is_open ? PROT_READ | PROT_WRITE : PROT_NONE);
    }
  }

 private:
  void protect(std::int64_t begin, std::int64_t end, int protection) const {
    TTT_CHECK(mprotect(base_ + begin, static_cast<std::size_t>(end - begin), protection) == 0,
              "mprotect of {} bytes", end - begin);
  }

  bool is_open_;
  std::byte* base_ = nullptr;
  std::int64_t used_ = 0;
  // Begins and ends from base_, of blocks in use and of neighbours among them.
  std::map<std::int64_t, std::int64_t> blocks_, runs_;
};

Arena& device_arena() {
  static auto* const arena = new Arena(false);
  return *arena;
}
Arena& pinned_arena() {
  static auto* const arena = new Arena(true);
  return *arena;
}
int num_device_accesses = 0;

}  // namespace

std::byte* allocate_device(std::int64_t bytes) { return device_arena().take(bytes); }
void release_device(std::byte* block) { device_arena().give(block); }
std::byte* allocate_pinned(std::int64_t bytes) { return pinned_arena().take(bytes); }
void release_pinned(std::byte* block) { pinned_arena().give(block); }

DeviceAccess::DeviceAccess() {
  if (num_device_accesses++ == 0) device_arena().set_open(true);
}

DeviceAccess::~DeviceAccess() {
  if (--num_device_accesses == 0) device_arena().set_open(false);
}

void clear_device(std::byte* block, std::int64_t bytes) {
  const DeviceAccess access;
  std::memset(block, 0, static_cast<std::size_t>(bytes));
}

void close_pinned(bool is_closed) { pinned_arena().set_open(!is_closed); }

}  // namespace ttt::simt
