#pragma once
// Host memory for tensors: 64-byte aligned, recycled, counted.
//
// Training allocates the same shapes every step; blocks are kept on free lists so that a step does
// not pay the kernel for fresh pages. Thread safe.

#include <cstdint>
#include <memory>

namespace ttt::memory {

/// A block of at least `bytes` bytes, uninitialised; returned to the pool on destruction.
/// Throws kOutOfMemory with the current use.
std::shared_ptr<std::byte> allocate(std::int64_t bytes);

/// Bytes in live tensors now, and the most there ever were since `reset_peak`.
std::int64_t live_bytes();
std::int64_t peak_bytes();
void reset_peak();

/// Returns the free lists to the system.
void release_free_blocks();

}  // namespace ttt::memory
