#pragma once
// What kernels over the rows of [N, C] share: rows in chunks, sums over the lanes of a warp and the threads of a block,
// and sums over rows, which take two stages: blocks write one partial row each, whose columns `add_column_sums` adds up.
// Every sum has one order, which the shapes alone decide.

#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/base/tensor.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda {

constexpr int kWarpLanes = 32;
constexpr int kMaxWarps = 32;  // of a block

/// kCount elements that are read or written at once, in accesses of up to 16 bytes.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Chunk {
  T values[kCount];
};

/// to[0, kCount) = from[0, kCount); `from` is aligned to the chunk.
template <int kCount, typename T>
__device__ __forceinline__ void load_chunk(const T* from, float* to) {
  const auto chunk = *reinterpret_cast<const Chunk<T, kCount>*>(from);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = load_float(chunk.values[i]);
}

/// to[0, kCount) = from[0, kCount), rounded; `to` is in global memory and aligned to the chunk.
template <int kCount>
__device__ __forceinline__ void store_chunk(float* to, const float* from) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      store_16(to + i, uint4{float_to_bits(from[i]), float_to_bits(from[i + 1]),
                             float_to_bits(from[i + 2]), float_to_bits(from[i + 3])});
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = from[i];
  }
}

template <int kCount>
__device__ __forceinline__ void store_chunk(BFloat16* to, const float* from) {
  if constexpr (kCount % 8 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 8) {
      store_16(to + i,
               uint4{pack_bf16(from[i], from[i + 1]), pack_bf16(from[i + 2], from[i + 3]),
                     pack_bf16(from[i + 4], from[i + 5]), pack_bf16(from[i + 6], from[i + 7])});
    }
  } else {
    Chunk<BFloat16, kCount> chunk;
#pragma unroll
    for (int i = 0; i < kCount; ++i) store_float(&chunk.values[i], from[i]);
    *reinterpret_cast<Chunk<BFloat16, kCount>*>(to) = chunk;
  }
}

/// Whether `bytes` divides every one of the addresses.
template <typename... Pointers>
bool are_aligned(std::size_t bytes, const Pointers*... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) % bytes == 0) && ...);
}

/// Calls f(std::integral_constant<int, kCount>) when rows may be read in such chunks, else with 1.
template <int kCount, typename F>
void visit_chunk(bool is_chunked, F&& f) {
  if (is_chunked) {
    std::forward<F>(f)(std::integral_constant<int, kCount>{});
  } else {
    std::forward<F>(f)(std::integral_constant<int, 1>{});
  }
}

/// The sum over the warp's lanes, the same bits in each.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) {
    value += __shfl_xor_sync(0xffffffffU, value, mask);
  }
  return value;
}

/// Each value's sum over the threads of a one-dimensional block of whole warps, the same bits in each. There is one
/// barrier inside: `shared` [kCount * kMaxWarps] may be used again once a block_sum with other memory has come between.
template <int kCount>
__device__ __forceinline__ void block_sum(float (&values)[kCount], float* shared) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = warp_sum(values[i]);
  const unsigned num_warps = blockDim.x / kWarpLanes;
  if (num_warps == 1) return;
  const unsigned lane = threadIdx.x % kWarpLanes;
  if (lane == 0) {
    for (int i = 0; i < kCount; ++i) {
      shared[i * kMaxWarps + static_cast<int>(threadIdx.x / kWarpLanes)] = values[i];
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = warp_sum(lane < num_warps ? shared[i * kMaxWarps + static_cast<int>(lane)] : 0.0F);
  }
}

/// The sum over the threads of a one-dimensional block of whole warps, in thread 0. Once a kernel.
__device__ __forceinline__ double block_sum(double mine) {
  __shared__ double warp_sums[kMaxWarps];
  for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
    mine += __shfl_down_sync(0xffffffffU, mine, distance);
  }
  if (threadIdx.x % kWarpLanes == 0) warp_sums[threadIdx.x / kWarpLanes] = mine;
  __syncthreads();
  double sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / kWarpLanes; ++warp) sum += warp_sums[warp];
  return sum;
}

// Blocks that sum columns have a column for each lane and walk down the rows in groups.
constexpr int kColumnGroups = 8;
inline dim3 column_block() { return dim3(kWarpLanes, kColumnGroups); }

/// The sum of value_at(row) over rows [begin, end) in a `column_block`, where threadIdx.x names the column; complete
/// in the threads of group 0. All threads of the block call it, once a kernel; a lane without a column has no rows.
template <typename F>
__device__ __forceinline__ float column_sum(std::int64_t begin, std::int64_t end, F&& value_at) {
  __shared__ float groups[kColumnGroups][kWarpLanes];
  float sum = 0.0F;
  for (std::int64_t row = begin + threadIdx.y; row < end; row += kColumnGroups) {
    sum += value_at(row);
  }
  groups[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0) {
    for (int group = 1; group < kColumnGroups; ++group) sum += groups[group][threadIdx.x];
  }
  return sum;
}

// A template so that several files may hold it.
template <typename T>
__global__ void __launch_bounds__(kWarpLanes* kColumnGroups)
    add_column_sums_kernel(const T* partial, std::int64_t rows, std::int64_t width, float* first,
                           std::int64_t first_count, float* second) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarpLanes + threadIdx.x;
  const float sum = column_sum(0, column < width ? rows : 0, [&](std::int64_t row) {
    return load_float(partial[row * width + column]);
  });
  if (threadIdx.y != 0 || column >= width) return;
  float* const target = column < first_count ? first + column : second + (column - first_count);
  *target += sum;
}

/// Adds the columns of `partial` [P, A + B] over its rows to `first` [A] and `second` [B] (which may be empty), F32.
inline void add_column_sums(TensorView partial, TensorView first, TensorView second,
                            Stream& stream) {
  const std::int64_t width = partial.size(1);
  const std::int64_t blocks = (width + kWarpLanes - 1) / kWarpLanes;
  launch(add_column_sums_kernel<float>, {dim3(static_cast<unsigned>(blocks)), column_block()},
         stream, partial.data<float>(), partial.size(0), width, first.data<float>(), first.numel(),
         second.data<float>());
}

}  // namespace ttt::kernels::cuda
