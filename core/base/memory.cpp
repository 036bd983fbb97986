#include "core/base/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
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

std::string in_units(std::int64_t bytes) {
  const auto count = static_cast<double>(bytes);
  if (bytes < 1 << 20) return fmt::format("{} bytes", bytes);
  return bytes < 1 << 30 ? fmt::format("{:.1f} MiB", count / 1048576.0)
                         : fmt::format("{:.2f} GiB", count / 1073741824.0);
}

// Where a block belongs.
struct Origin {
  Place place;
  std::int64_t block_bytes;

  // NOLINTNEXTLINE(modernize-use-nullptr): clang 14 takes the comparison's own zero for a pointer
  auto operator<=>(const Origin&) const = default;
};

using FreeLists = std::map<Origin, std::vector<std::byte*>>;

// Null when there is none.
std::byte* take_from(FreeLists& lists, const Origin& origin) {
  auto& list = lists[origin];
  if (list.empty()) return nullptr;
  std::byte* const block = list.back();
  list.pop_back();
  return block;
}

}  // namespace

struct Reserve::Blocks {
  FreeLists free;
  bool is_open = true;
};

namespace {

class Pool {
 public:
  /// `reserve` (may be null) comes first.
  std::byte* take(Origin& origin, const Purpose& purpose, FreeLists* reserve) {
    const std::lock_guard<std::mutex> lock(mutex_);
    origin.place = served(origin.place);
    std::byte* block = reserve != nullptr ? take_from(*reserve, origin) : nullptr;
    if (block == nullptr) block = take_from(free_, origin);
    if (block == nullptr) {
      block = source(origin.place).allocate(origin.block_bytes);
      if (block == nullptr) {  // blocks of other sizes may be in the way
        release_all();
        block = source(origin.place).allocate(origin.block_bytes);
      }
      if (block != nullptr) held_ += origin.block_bytes;
    }
    if (block == nullptr) fail_out_of_memory(origin, purpose);
    live_ += origin.block_bytes;
    peak_ = std::max(peak_, live_);
    peak_held_ = std::max(peak_held_, held_);
    Use& use = uses_[purpose.name];
    use.bytes += origin.block_bytes;
    use.remedy = purpose.remedy;
    return block;
  }

  /// Back to `reserve` while it is open.
  void give(std::byte* block, const Origin& origin, const char* purpose, Reserve::Blocks* reserve) {
    const std::lock_guard<std::mutex> lock(mutex_);
    live_ -= origin.block_bytes;
    uses_[purpose].bytes -= origin.block_bytes;
    if (reserve != nullptr && reserve->is_open) {
      reserve->free[origin].push_back(block);
    } else {
      put_free(block, origin);
    }
  }

  void clear(std::byte* block, Place place, std::int64_t bytes) const {
    BlockSource by;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      by = source(served(place));
    }
    if (by.is_counting_only) return;
    if (by.clear != nullptr) return by.clear(block, bytes);
    std::memset(block, 0, static_cast<std::size_t>(bytes));
  }

  void close(Reserve::Blocks& reserve) {
    const std::lock_guard<std::mutex> lock(mutex_);
    reserve.is_open = false;
    for (const auto& [origin, list] : reserve.free) {
      for (std::byte* block : list) put_free(block, origin);
    }
    reserve.free.clear();
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    release_all();
  }

  BlockSources set_sources(const BlockSources& sources) {
    const std::lock_guard<std::mutex> lock(mutex_);
    release_all();
    const BlockSources before = sources_;
    sources_ = sources;
    if (sources_.shared.allocate == nullptr) sources_.shared = {&allocate_host, &release_host};
    const bool is_same = sources_.shared.allocate == before.shared.allocate &&
                         sources_.device.allocate == before.device.allocate &&
                         sources_.pinned.allocate == before.pinned.allocate;
    TTT_CHECK(live_ == 0 || is_same, "the source of memory changes while {} bytes are in tensors",
              live_);
    return before;
  }
  bool is_counting_only() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return sources_.shared.is_counting_only;
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
  struct Use {
    std::int64_t bytes = 0;
    const char* remedy = nullptr;
  };

  const BlockSource& source(Place place) const {
    if (place == Place::kDevice) return sources_.device;
    return place == Place::kPinned ? sources_.pinned : sources_.shared;
  }

  Place served(Place place) const {
    return source(place).allocate == nullptr ? Place::kShared : place;
  }

  void put_free(std::byte* block, const Origin& origin) {
#if defined(__SANITIZE_ADDRESS__)
    release_one(block, origin);  // so that a use after free is seen
#else
    free_[origin].push_back(block);
#endif
  }
  void release_one(std::byte* block, const Origin& origin) {
    source(origin.place).release(block);
    held_ -= origin.block_bytes;
  }
  void release_all() {
    for (auto& [origin, list] : free_) {
      for (std::byte* block : list) release_one(block, origin);
      list.clear();
    }
  }

  [[noreturn]] void fail_out_of_memory(const Origin& origin, const Purpose& purpose) const {
    std::vector<std::pair<std::string_view, Use>> uses(uses_.begin(), uses_.end());
    std::erase_if(uses, [](const auto& use) { return use.second.bytes == 0; });
    std::ranges::sort(uses, std::greater(), [](const auto& use) { return use.second.bytes; });
    std::string consumers;
    for (const auto& [name, use] : uses) {
      consumers +=
          fmt::format("{}{} {}", consumers.empty() ? ": " : ", ", name, in_units(use.bytes));
    }
    fail(ExitCode::kOutOfMemory,
         "out of memory: {} asked for ({}), {} in tensors{}. To need less, {}",
         in_units(origin.block_bytes), purpose.name, in_units(live_), consumers,
         uses.empty() ? purpose.remedy : uses.front().second.remedy);
  }

  mutable std::mutex mutex_;
  BlockSources sources_{{&allocate_host, &release_host}, {}, {}};
  FreeLists free_;
  std::map<std::string_view, Use> uses_;  // by purpose
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

thread_local Purpose current_purpose;
thread_local Place current_place = Place::kShared;
thread_local std::shared_ptr<Reserve::Blocks> current_reserve;

}  // namespace

Scope::Scope(const Purpose& purpose, Place place)
    : outer_purpose_(current_purpose), outer_place_(current_place) {
  current_purpose = purpose;
  current_place = place;
}

Scope::~Scope() {
  current_purpose = outer_purpose_;
  current_place = outer_place_;
}

Reserve::Reserve() : blocks_(std::make_shared<Blocks>()) {}
Reserve::~Reserve() { pool().close(*blocks_); }
Reserve::Use::Use(Reserve& reserve) : outer_(std::move(current_reserve)) {
  current_reserve = reserve.blocks_;
}
Reserve::Use::~Use() { current_reserve = std::move(outer_); }

std::shared_ptr<std::byte> allocate(std::int64_t bytes) {
  TTT_CHECK(bytes >= 0, "allocation of {} bytes", bytes);
  Origin origin{current_place, size_class(bytes)};
  std::byte* block = pool().take(origin, current_purpose,
                                 current_reserve != nullptr ? &current_reserve->free : nullptr);
#ifdef TTT_POISON_FRESH_MEMORY
  if (origin.place != Place::kDevice && !is_counting_only()) {  // NaN in every float format
    std::memset(block, 0xff, static_cast<std::size_t>(origin.block_bytes));
  }
#endif
  return {block, [origin, purpose = current_purpose.name, reserve = current_reserve](std::byte* p) {
            pool().give(p, origin, purpose, reserve.get());
          }};
}

std::shared_ptr<std::byte> allocate_zeros(std::int64_t bytes) {
  std::shared_ptr<std::byte> block = allocate(bytes);
  pool().clear(block.get(), current_place, bytes);
  return block;
}

std::int64_t live_bytes() { return pool().live(); }
std::int64_t peak_bytes() { return pool().peak(); }
std::int64_t peak_held_bytes() { return pool().peak_held(); }
void reset_peak() { pool().reset_peak(); }
void release_free_blocks() { pool().release(); }
BlockSources set_block_sources(const BlockSources& sources) { return pool().set_sources(sources); }
bool is_counting_only() { return pool().is_counting_only(); }

}  // namespace ttt::memory
