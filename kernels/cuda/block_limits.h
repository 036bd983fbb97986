#pragma once
// What a device offers the blocks of a kernel: kernels that need much of it are chosen by these.

#include <cstdint>

namespace ttt::kernels::cuda {

struct BlockLimits {
  std::int64_t shared_bytes = 0;  // dynamic shared memory of a block, at most
  bool has_clusters = false;      // blocks of a cluster reach each other's shared memory
};

/// Of devices of this compute capability times ten, which need not be there: for planning.
/// Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
constexpr BlockLimits block_limits_of(int compute_capability) {
  constexpr std::int64_t kKiB = 1024;
  const bool has_clusters = compute_capability >= 90;
  const bool is_small =
      compute_capability == 86 || compute_capability == 89 || compute_capability >= 120;
  if (is_small) return {99 * kKiB, has_clusters};
  return {(has_clusters ? 227 : 163) * kKiB, has_clusters};
}

}  // namespace ttt::kernels::cuda
