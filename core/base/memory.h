#pragma once
// Memory for tensors: 64-byte aligned, recycled, counted.
//
// Training allocates the same shapes every step; blocks are kept on free lists so that a step does
// not pay the kernel for fresh pages. Thread safe. A block that a queued kernel still uses may be given out again: that is
// right for the next kernel of the same stream; host code synchronises before it writes a fresh tensor.

#include <cstdint>
#include <memory>

namespace ttt::memory {

/// Who touches a block. On the CPU all are the same.
enum class Place : std::uint8_t {
  kShared,  // host and kernels, in turn: what is initialised, saved or looked at
  kDevice,  // kernels alone
  kPinned,  // the host, while kernels that copy it from or to the device may run
};
inline constexpr int kNumPlaces = 3;

/// What tensors are for, to people who have too little memory. Both strings are literals.
struct Purpose {
  const char* name = "others";
  const char* remedy = "use a smaller model or more ranks";  // what makes them smaller
};

/// Where fresh tensors of this thread lie and what they are for, from here to the end of the block. The innermost counts;
/// without one they are shared and for others.
class Scope {
 public:
  explicit Scope(const Purpose& purpose, Place place = Place::kShared);
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  ~Scope();

 private:
  Purpose outer_purpose_;
  Place outer_place_;
};

/// A block of at least `bytes` bytes, uninitialised; returned to the pool on destruction.
/// Throws kOutOfMemory with what uses most.
std::shared_ptr<std::byte> allocate(std::int64_t bytes);
/// The same with `bytes` zeros, as if the host wrote them: they are there when it returns. None in memory that is only
/// counted.
std::shared_ptr<std::byte> allocate_zeros(std::int64_t bytes);

/// Blocks that the pool gives to nobody else: for work that will run again with the addresses of its tensors
/// (core/base/capture.h). What is allocated while a Use lives comes from blocks that were here before, or else from the pool,
/// and comes back here. With the reserve's end they go to the pool, those in live tensors when these end.
class Reserve {
 public:
  Reserve();
  Reserve(const Reserve&) = delete;
  Reserve& operator=(const Reserve&) = delete;
  ~Reserve();

  struct Blocks;  // the pool's own
  /// Of this thread, from here to the end of the block; the innermost counts.
  class Use {
   public:
    explicit Use(Reserve& reserve);
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    ~Use();

   private:
    std::shared_ptr<Blocks> outer_;
  };

 private:
  std::shared_ptr<Blocks> blocks_;
};

/// Where fresh blocks come from instead of the host's heap. `allocate` returns null when there is no memory.
struct BlockSource {
  std::byte* (*allocate)(std::int64_t bytes) = nullptr;
  void (*release)(std::byte* block) = nullptr;
  /// Zeroes the first `bytes` bytes of a block and waits until they are; null where the host does it.
  void (*clear)(std::byte* block, std::int64_t bytes) = nullptr;
  /// Blocks have addresses but no memory: tensors are counted, nothing may touch them (kernels/planning.h).
  bool is_counting_only = false;
};
struct BlockSources {
  BlockSource shared, device, pinned;  // by Place
};
/// From here on; returns the sources so far. Without a source shared memory is the host's heap, and the other places are
/// shared memory. Throws while tensors are alive, whose blocks would go back to the wrong place.
BlockSources set_block_sources(const BlockSources& sources);
/// Of the source of shared memory.
bool is_counting_only();

/// Bytes in live tensors now, and the most there ever were since `reset_peak`.
std::int64_t live_bytes();
std::int64_t peak_bytes();
/// Bytes taken from the source and not returned to it, at their most since `reset_peak`: what a device must have free.
/// At least peak_bytes(), because a block on a free list serves its own size class only.
std::int64_t peak_held_bytes();
void reset_peak();

/// Returns the free lists to the system.
void release_free_blocks();

}  // namespace ttt::memory
