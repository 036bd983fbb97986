#include "core/base/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "core/base/error.h"

namespace ttt::memory {
namespace {

constexpr std::int64_t kAlignment = 64;
constexpr std::int64_t kHugePage = std::int64_t{2} << 20;

// Classes are an eighth of a power of two apart: at most 12.5 % is lost to rounding.
std::int64_t size_class(std::int64_t bytes) {
  if (bytes <= 512) return 512;
  const auto power = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(bytes)));
  const std::int64_t grain = power / 8;  // itself a power of two
  return (bytes + grain - 1) & ~(grain - 1);
}

std::byte* allocate_host(std::int64_t bytes) {
  const std::int64_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  const auto rounded = static_cast<std::size_t>((bytes + alignment - 1) / alignment * alignment);
  void* block = std::aligned_alloc(static_cast<std::size_t>(alignment), rounded);
  if (block != nullptr && bytes >= kHugePage) madvise(block, rounded, MADV_HUGEPAGE);
  return static_cast<std::byte*>(block);
}

void release_host(std::byte* block) { std::free(block); }

class Pool {
 public:
  std::byte* take(std::int64_t block_bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    live_ += block_bytes;
    peak_ = std::max(peak_, live_);
    auto& list = free_[block_bytes];
    if (!list.empty()) {
      std::byte* block = list.back();
      list.pop_back();
      return block;
    }
    std::byte* block = source_.allocate(block_bytes);
    if (block == nullptr) {
      live_ -= block_bytes;
      fail(ExitCode::kOutOfMemory, "out of memory: {} bytes asked for, {} bytes in tensors",
           block_bytes, live_);
    }
    held_ += block_bytes;
    peak_held_ = std::max(peak_held_, held_);
    return block;
  }

  void give(std::byte* block, std::int64_t block_bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    live_ -= block_bytes;
#if defined(__SANITIZE_ADDRESS__)
    release_one(block, block_bytes);  // so that a use after free is seen
#else
    free_[block_bytes].push_back(block);
#endif
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [bytes, list] : free_) {
      for (std::byte* block : list) release_one(block, bytes);
      list.clear();
    }
  }

  BlockSource set_source(const BlockSource& source) {
    release();
    const std::lock_guard<std::mutex> lock(mutex_);
    TTT_CHECK(live_ == 0 || source.allocate == source_.allocate,
              "the source of memory changes while {} bytes are in tensors", live_);
    return std::exchange(source_, source);
  }
  bool is_counting_only() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return source_.is_counting_only;
  }

  std::int64_t live() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return live_;
  }
  std::int64_t peak() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return peak_;
  }
  std::int64_t peak_held() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return peak_held_;
  }
  void reset_peak() {
    const std::lock_guard<std::mutex> lock(mutex_);
    peak_ = live_;
    peak_held_ = held_;
  }

 private:
  void release_one(std::byte* block, std::int64_t bytes) {
    source_.release(block);
    held_ -= bytes;
  }

  mutable std::mutex mutex_;
  BlockSource source_{&allocate_host, &release_host, false};
  std::map<std::int64_t, std::vector<std::byte*>> free_;
  std::int64_t live_ = 0;
  std::int64_t peak_ = 0;
  std::int64_t held_ = 0;
  std::int64_t peak_held_ = 0;
};

// Never destroyed: tensors with static storage may outlive any order of destruction.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

}  // namespace

std::shared_ptr<std::byte> allocate(std::int64_t bytes) {
  TTT_CHECK(bytes >= 0, "allocation of {} bytes", bytes);
  const std::int64_t block_bytes = size_class(bytes);
  std::byte* block = pool().take(block_bytes);
#ifdef TTT_POISON_FRESH_MEMORY
  if (!is_counting_only())
    std::memset(block, 0xff, static_cast<std::size_t>(block_bytes));  // NaN in every float format
#endif
  return {block, [block_bytes](std::byte* p) { pool().give(p, block_bytes); }};
}

std::int64_t live_bytes() { return pool().live(); }
std::int64_t peak_bytes() { return pool().peak(); }
std::int64_t peak_held_bytes() { return pool().peak_held(); }
void reset_peak() { pool().reset_peak(); }
void release_free_blocks() { pool().release(); }
BlockSource set_block_source(const BlockSource& source) { return pool().set_source(source); }
bool is_counting_only() { return pool().is_counting_only(); }

}  // namespace ttt::memory
