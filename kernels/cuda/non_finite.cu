#include <algorithm>
#include <cfloat>
#include <cmath>

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/reduce.h"
#include "kernels/non_finite.h"

namespace ttt::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// The least over the threads of a one-dimensional block of whole warps, in thread 0. Once a kernel.
__device__ __forceinline__ double block_min(double mine) {
  __shared__ double of_warps[kMaxWarps];
  for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
    mine = fmin(mine, __shfl_down_sync(0xffffffffU, mine, distance));
  }
  if (threadIdx.x % kWarpLanes == 0) of_warps[threadIdx.x / kWarpLanes] = mine;
  __syncthreads();
  double least = of_warps[0];
  for (unsigned warp = 1; warp < blockDim.x / kWarpLanes; ++warp)
    least = fmin(least, of_warps[warp]);
  return least;
}

// A block of threads a block of elements.
__global__ void __launch_bounds__(kThreads)
    find_kernel(const float* __restrict__ x, std::int64_t count, double begin,
                double* __restrict__ partial) {
  const std::int64_t from = blockIdx.x * kNonFiniteBlock;
  const std::int64_t to = std::min(count, from + kNonFiniteBlock);
  double least = HUGE_VAL;
  for (std::int64_t i = from + threadIdx.x; i < to; i += kThreads) {
    if (!(fabsf(x[i]) <= FLT_MAX)) least = fmin(least, begin + static_cast<double>(i));
  }
  least = block_min(least);
  if (threadIdx.x == 0) partial[blockIdx.x] = least;
}

// One block.
__global__ void __launch_bounds__(kThreads)
    smallest_kernel(const double* __restrict__ partial, std::int64_t count,
                    double* __restrict__ result) {
  double least = HUGE_VAL;
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) least = fmin(least, partial[i]);
  least = block_min(least);
  if (threadIdx.x == 0) *result = least;
}

}  // namespace

void find_non_finite(TensorView x, std::int64_t begin, TensorView partial, Stream& stream) {
  launch(find_kernel, {dim3(static_cast<unsigned>(partial.numel())), dim3(kThreads)}, stream,
         x.data<float>(), x.numel(), static_cast<double>(begin), partial.data<double>());
}

void smallest(TensorView partial, TensorView result, Stream& stream) {
  launch(smallest_kernel, {dim3(1), dim3(kThreads)}, stream, partial.data<double>(),
         partial.numel(), result.data<double>());
}

}  // namespace ttt::kernels::cuda
