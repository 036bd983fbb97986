#pragma once
// From a run-time element type to a template argument, and the shapes of launches that most kernels share.

#include <algorithm>
#include <cstdint>
#include <utility>

#include "core/base/tensor.h"
#include "kernels/cuda/launch.h"

namespace ttt::kernels::cuda {

/// Calls f(float{}) or f(BFloat16{}): the element types of activations.
template <typename F>
void visit_activation_type(DType dtype, F&& f) {
  TTT_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "F32 or BF16 needed on CUDA, not {}",
            name_of(dtype));
  if (dtype == DType::kF32) {
    std::forward<F>(f)(float{});
  } else {
    std::forward<F>(f)(BFloat16{});
  }
}

/// Blocks of 256 threads for `count` independent elements; kernels loop with `for_each_element`.
inline LaunchShape elementwise_shape(std::int64_t count) {
  constexpr std::int64_t kThreads = 256;
  constexpr std::int64_t kMaxBlocks = 4096;  // several times what any device runs at once
  const std::int64_t blocks = std::min((count + kThreads - 1) / kThreads, kMaxBlocks);
  return {dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(kThreads))};
}

#if defined(__CUDACC__) || defined(TTT_SIMT_EMULATOR)
/// f(i) for this thread's share of [0, count).
template <typename F>
__device__ __forceinline__ void for_each_element(std::int64_t count, F&& f) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    f(i);
  }
}
#endif

}  // namespace ttt::kernels::cuda
