#pragma once
// The state W, b of TTT-Linear (and its gradient) in the registers of a block: layout in kernels/cuda/ttt_fused.h.

#include "kernels/cuda/ttt_fused.h"

namespace ttt::kernels::cuda::fused {

#if defined(__CUDACC__) || defined(TTT_SIMT_EMULATOR)

template <int F>
struct LinearState {
  float w[F / 8][4];  // w[i][2 j + e] = W[8 i + 2 t + e][16 warp + g + 8 j]
  float b[2][2];      // b[j][e] of feature 16 warp + 8 j + 2 t + e; the same for all g
};

/// From W [F, F] and b [F] of one pair.
template <int F>
__device__ __forceinline__ void load_state(LinearState<F>& state, const float* w, const float* b) {
  const Lane at = this_lane();
  const float* own = w + 2 * at.t * F + 16 * at.warp + at.g;
#pragma unroll
  for (int i = 0; i < F / 8; ++i) {
#pragma unroll
    for (int r = 0; r < 4; ++r) state.w[i][r] = own[(8 * i + (r & 1)) * F + 8 * (r >> 1)];
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    state.b[r >> 1][r & 1] = b[16 * at.warp + 8 * (r >> 1) + 2 * at.t + (r & 1)];
  }
}

/// To W [F, F] and b [F], with the means that `centre` has taken out.
template <int F>
__device__ __forceinline__ void store_state(const LinearState<F>& state, const float* means,
                                            float* w, float* b) {
  const Lane at = this_lane();
  float* own = w + 2 * at.t * F + 16 * at.warp + at.g;
#pragma unroll
  for (int i = 0; i < F / 8; ++i) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      own[(8 * i + (r & 1)) * F + 8 * (r >> 1)] = state.w[i][r] + means[8 * i + 2 * at.t + (r & 1)];
    }
  }
  if (at.g != 0) return;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    b[16 * at.warp + 8 * (r >> 1) + 2 * at.t + (r & 1)] = state.b[r >> 1][r & 1] + means[F];
  }
}

/// Takes the mean over the out-features out of every row of W and out of b: into `means` [F + 1]. `sums` holds
/// (F + 1) F / 16 floats, free again at the end. All threads of the block call it; they meet twice.
template <int F>
__device__ __forceinline__ void centre(LinearState<F>& state, float* sums, float* means) {
  const Lane at = this_lane();
  const auto thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < F / 8; ++i) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float sum = state.w[i][e] + state.w[i][2 + e];
      for (int mask = 4; mask < 32; mask *= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
      if (at.g == 0) sums[at.warp * (F + 1) + 8 * i + 2 * at.t + e] = sum;
    }
  }
  float sum = state.b[0][0] + state.b[0][1] + state.b[1][0] + state.b[1][1];
  for (int mask = 1; mask < 4; mask *= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
  if (at.lane == 0) sums[at.warp * (F + 1) + F] = sum;
  __syncthreads();
  if (thread <= F) {
    float total = 0;
    for (int warp = 0; warp < Layout<F>::kWarps; ++warp) total += sums[warp * (F + 1) + thread];
    means[thread] = total * (1.0F / F);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < F / 8; ++i) {
#pragma unroll
    for (int r = 0; r < 4; ++r) state.w[i][r] -= means[8 * i + 2 * at.t + (r & 1)];
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) state.b[r >> 1][r & 1] -= means[F];
}

/// A state of TttSaved::checkpoints: W as the threads hold it, 16 bytes a thread, then b.
template <int F>
__device__ __forceinline__ void store_checkpoint(const LinearState<F>& state, float* checkpoint) {
  const Lane at = this_lane();
#pragma unroll
  for (int i = 0; i < F / 8; ++i) {
    const float(&w)[4] = state.w[i];
    reinterpret_cast<float4*>(checkpoint)[i * Layout<F>::kThreads + static_cast<int>(threadIdx.x)] =
        float4{w[0], w[1], w[2], w[3]};
  }
  if (at.g != 0) return;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    checkpoint[F * F + 16 * at.warp + 8 * (r >> 1) + 2 * at.t + (r & 1)] = state.b[r >> 1][r & 1];
  }
}

/// Where this pair's checkpoint `slot` begins: those of the starts of mini-batches 128, 256, ..., then the final one.
template <int F>
__device__ __forceinline__ std::int64_t checkpoint_offset(const PairRows& rows, int slot) {
  // Rarely used: not worth registers.
  const int slots = (opaque(rows.num_mini_batches()) - 1) / kCheckpointEvery + 1;
  const int pair = opaque(static_cast<int>(blockIdx.x));
  return static_cast<std::int64_t>(pair * slots + slot) * Layout<F>::kStateFloats;
}

template <int F>
__device__ __forceinline__ void load_checkpoint(LinearState<F>& state, const float* checkpoint) {
  const int thread = opaque(static_cast<int>(threadIdx.x));
#pragma unroll
  for (int i = 0; i < F / 8; ++i) {
    const float4 w = reinterpret_cast<const float4*>(checkpoint)[i * Layout<F>::kThreads + thread];
    state.w[i][0] = w.x;
    state.w[i][1] = w.y;
    state.w[i][2] = w.z;
    state.w[i][3] = w.w;
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    state.b[r >> 1][r & 1] =
        checkpoint[F * F + (thread >> 5) * 16 + 8 * (r >> 1) + 2 * (thread & 3) + (r & 1)];
  }
}

/// W += factor k^T (l G), b += factor sum_j l_j G_j; `step_t` is the transposed blocks of the step's tile at the own
/// features. Forward steps with -c_r and backward undoes it with c_r: the same products, added alike.
template <int F>
__device__ __forceinline__ void step_state(LinearState<F>& state, const std::byte* step_tile,
                                           const std::uint32_t (&step_t)[4],
                                           const std::byte* k_tile, float factor) {
  std::uint32_t a[4];
  load_transposed_swapped<F>(a, step_tile, this_lane().warp);
  add_outer_product<F>(state.w, k_tile, {a[0], a[2], a[1], a[3]}, factor);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    float sum[4] = {};
    token_sums(sum, step_t, j);
    state.b[j][0] += factor * sum[0];
    state.b[j][1] += factor * sum[1];
  }
}

#endif

}  // namespace ttt::kernels::cuda::fused
