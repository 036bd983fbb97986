#pragma once
// What kernels of depthwise causal convolutions share: runs of tokens, weights and sums in registers.

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda::conv {

// A lag is how far a tap looks back: lag l has weight W - 1 - l. A block is a tile of channels, a chunk for each lane,
// times some groups' runs of tokens of one sequence each; a thread slides along its run with a window of inputs in registers.
// Four channels a thread (8 bytes of bf16): twice as many would leave too few registers for enough threads.
constexpr int kWidth = 4;
constexpr int kGroups = 8;
constexpr int kRunTokens = 32;
constexpr int kTaps = 4;   // lags held in registers; wider windows read the others from memory
constexpr int kBatch = 4;  // tokens whose loads are under way together
constexpr int kThreads = kWarpLanes * kGroups;
constexpr std::int64_t kMaxPartialRows = 128;

struct Sizes {
  std::int64_t batch, tokens, channels, window;
  std::int64_t runs_per_sequence;

  __host__ __device__ std::int64_t runs() const { return batch * runs_per_sequence; }
};

// Tokens [begin, end) of sequence b.
struct Run {
  std::int64_t b, begin, end;
};

__device__ __forceinline__ Run run_of(const Sizes& sizes, std::int64_t index) {
  const std::int64_t b = index / sizes.runs_per_sequence;
  const std::int64_t begin = (index - b * sizes.runs_per_sequence) * kRunTokens;
  const std::int64_t end = begin + kRunTokens;
  return {b, begin, end < sizes.tokens ? end : sizes.tokens};
}

template <int kCount>
__device__ __forceinline__ void fill_zero(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = 0.0F;
}

template <int kCount>
__device__ __forceinline__ void add_product(const float (&a)[kCount], const float (&b)[kCount],
                                            float (&sum)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] += a[i] * b[i];
}

template <int kCount, typename T>
__device__ __forceinline__ void add_chunk(const T* from, float (&sum)[kCount]) {
  float values[kCount];
  load_chunk<kCount>(from, values);
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] += values[i];
}

// The weights of lags [0, kTaps) of the thread's channels, which the block reads together: in memory a channel's weights
// are neighbours, in registers a lag's. All threads of the block call it.
template <int kBlockGroups = kGroups, int kCount>
__device__ __forceinline__ void load_weights(const float* w, const Sizes& sizes, std::int64_t tile,
                                             float (&weights)[kTaps][kCount]) {
  __align__(16) __shared__ float staged[kTaps][kWarpLanes * kCount];
  for (int i = static_cast<int>(threadIdx.y) * kWarpLanes + static_cast<int>(threadIdx.x);
       i < kTaps * kWarpLanes * kCount; i += kBlockGroups * kWarpLanes) {
    const std::int64_t c = tile + i / kTaps;
    const int lag = i % kTaps;
    const bool is_inside = c < sizes.channels && lag < sizes.window;
    staged[lag][i / kTaps] = is_inside ? w[(c + 1) * sizes.window - 1 - lag] : 0.0F;
  }
  __syncthreads();
#pragma unroll
  for (int lag = 0; lag < kTaps; ++lag) {
    load_chunk<kCount>(&staged[lag][threadIdx.x * kCount], weights[lag]);
  }
}

// The last inputs of a batch become the first of the next.
template <int kTokens, int kCount>
__device__ __forceinline__ void shift_window(float (&window)[kTaps - 1 + kTokens][kCount]) {
#pragma unroll
  for (int i = 0; i < kTaps - 1; ++i) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) window[i][k] = window[i + kTokens][k];
  }
}

// The row of input `t` of sequence b, t >= -(W - 1); null where that is zeros.
template <typename T>
__device__ __forceinline__ const T* input_row(const T* x, const T* history, const Sizes& sizes,
                                              std::int64_t b, std::int64_t t) {
  if (t >= 0) return x + (b * sizes.tokens + t) * sizes.channels;
  if (history == nullptr) return nullptr;
  return history + ((b + 1) * (sizes.window - 1) + t) * sizes.channels;
}

// Both histories may be the same memory: entry i comes from entry i + T or from x, so a thread that goes up never reads
// what it wrote.
template <typename T>
__global__ void history_kernel(const T* x, const T* history, T* final_history, Sizes sizes) {
  const std::int64_t before = sizes.window - 1;
  for_each_element(sizes.batch * sizes.channels, [&](std::int64_t index) {
    const std::int64_t b = index / sizes.channels;
    const std::int64_t c = index % sizes.channels;
    for (std::int64_t i = 0; i < before; ++i) {
      const T* const row = input_row(x, history, sizes, b, sizes.tokens - before + i);
      final_history[(b * before + i) * sizes.channels + c] = row == nullptr ? T{} : row[c];
    }
  });
}

// Adds up what the block's groups hold for a channel and hands f(channel of the tile, sum) the results.
template <int kBlockGroups = kGroups, int kCount, typename F>
__device__ __forceinline__ void for_each_group_sum(const float (&values)[kCount], F&& f) {
  static_assert(kBlockGroups >= kCount);  // a thread for each channel
  __shared__ float groups[kBlockGroups][kWarpLanes * kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) groups[threadIdx.y][threadIdx.x * kCount + i] = values[i];
  __syncthreads();
  const int channel = static_cast<int>(threadIdx.y) * kWarpLanes + static_cast<int>(threadIdx.x);
  if (channel < kWarpLanes * kCount) {
    float sum = 0.0F;
    for (int group = 0; group < kBlockGroups; ++group) sum += groups[group][channel];
    f(channel, sum);
  }
  __syncthreads();  // before the next values
}

template <int kCount>
struct GradientSums {
  float weight[kTaps][kCount] = {};
  float bias[kCount] = {};
};

inline Sizes sizes_of(TensorView x, TensorView w) {
  return {x.size(0), x.size(1), x.size(2), w.size(-1), (x.size(1) + kRunTokens - 1) / kRunTokens};
}

// Blocks of a tile of channels and kGroups runs each, tiles fastest: neighbours in time are neighbours in memory.
inline LaunchShape shape_of(std::int64_t tiles, std::int64_t blocks, std::int64_t lag_groups,
                            int block_groups = kGroups) {
  return {dim3(static_cast<unsigned>(tiles * blocks), static_cast<unsigned>(lag_groups)),
          dim3(kWarpLanes, static_cast<unsigned>(block_groups))};
}

}  // namespace ttt::kernels::cuda::conv
