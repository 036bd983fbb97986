#pragma once
// Memory for tensors: 64-byte aligned, recycled, counted.
//
// Training allocates the same shapes every step; blocks are kept on free lists so that a step does
// not pay the kernel for fresh pages. Thread safe. A block that a queued kernel still uses may be given out again: that is
// right for the next kernel of the same stream; host code synchronises before it writes a fresh tensor.

#include <cstdint>
#include <memory>

namespace ttt::memory {

/// A block of at least `bytes` bytes, uninitialised; returned to the pool on destruction.
/// Throws kOutOfMemory with the current use.
std::shared_ptr<std::byte> allocate(std::int64_t bytes);

/// Where fresh blocks come from instead of the host's heap. `allocate` returns null when there is no memory.
struct BlockSource {
  std::byte* (*allocate)(std::int64_t bytes) = nullptr;
  void (*release)(std::byte* block) = nullptr;
  /// Blocks have addresses but no memory: tensors are counted, nothing may touch them (kernels/planning.h).
  bool is_counting_only = false;
};
/// From here on; returns the source so far. Throws while tensors are alive, whose blocks would go back to the wrong
/// place.
BlockSource set_block_source(const BlockSource& source);
/// Of the source in use.
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
