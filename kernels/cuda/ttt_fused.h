#pragma once
// What the fused TTT-Linear kernels share beside tiles and fragments (kernels/cuda/ttt_tiles.h): LayerNorm and its sums
// over features. A block of F / 16 warps walks the mini-batches of one (batch, head) pair.
//
// Gradients G have no mean over the out-features, and LayerNorm ignores one: row means of W and the mean of b go
// through unchanged. They are taken out at the start and put back at the end; without them the variance is
// mean(z^2) - mean(z)^2 with nothing to cancel, and bf16 rounds what matters.

#include "kernels/cuda/ttt_tiles.h"

namespace ttt::kernels::cuda::fused {

constexpr int kCheckpointEvery =
    128;  // mini-batches; between them the backward restores states (drift 5e-7)

/// How many states TttSaved::checkpoints holds of each pair: those of the starts of mini-batches 128, 256, ..., and the
/// final one. All without their means, in the order of the threads' registers.
inline std::int64_t num_checkpoints(std::int64_t tokens) {
  const std::int64_t mini_batches = (tokens + kTokens - 1) / kTokens;
  return (mini_batches - 1) / kCheckpointEvery + 1;
}

#if defined(__CUDACC__) || defined(TTT_SIMT_EMULATOR)

/// The scales c to shared memory: fewer registers, and c_r is another one in a short last mini-batch.
__device__ __forceinline__ void copy_scales(float* scales, const float* token_scale) {
  if (threadIdx.x < kTokens) scales[threadIdx.x] = token_scale[threadIdx.x];
}

/// The rows of a matrix of tokens by tokens times -c: an A fragment.
__device__ __forceinline__ void pack_steps(std::uint32_t (&a)[4], const float (&x)[2][4],
                                           const float* scales) {
  const int g = this_lane().g;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float factor = -scales[g + 8 * (i & 1)];
    a[i] = pack_bf16(factor * x[i >> 1][2 * (i & 1)], factor * x[i >> 1][2 * (i & 1) + 1]);
  }
}

/// The warp's own 16 features of a mini-batch's rows to [B, T, H, F]. Lanes exchange words in pairs, so that every row's
/// 32 bytes leave in one instruction.
template <int F>
__device__ __forceinline__ void store_own(BFloat16* to, const PairRows& rows, int m,
                                          const std::uint32_t (&x)[4]) {
  const Lane at = this_lane();
  const bool is_odd = (at.t & 1) != 0;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const std::uint32_t received = __shfl_xor_sync(kAllLanes, is_odd ? x[k] : x[2 + k], 1);
    const uint2 words = is_odd ? uint2{received, x[2 + k]} : uint2{x[k], received};
    const int token = at.g + 8 * k;
    if (token < rows.count(m)) {
      BFloat16* row = to + rows.row(m * kTokens + token) * F + 16 * at.warp;
      *reinterpret_cast<uint2*>(row + (is_odd ? 8 : 0) + 4 * (at.t >> 1)) = words;
    }
  }
}

/// LayerNorm's weight gamma and bias beta at the lane's features.
struct HeadNorm {
  float weight[2][2];  // [j][e]
  float bias[2][2];
  float mean_square;  // of gamma, over all features

  __device__ float square(int j, int e) const { return weight[j][e] * weight[j][e]; }
};

template <int F>
__device__ __forceinline__ HeadNorm load_norm(const float* weight, const float* bias) {
  const Lane at = this_lane();
  HeadNorm norm;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      norm.weight[j][e] = weight[16 * at.warp + 8 * j + 2 * at.t + e];
      norm.bias[j][e] = bias[16 * at.warp + 8 * j + 2 * at.t + e];
    }
  }
  float sum = 0;
  for (int f = at.lane; f < F; f += 32) sum += weight[f] * weight[f];
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
  norm.mean_square = sum / F;
  return norm;
}

/// beta - (v - k): with x = (z - mean) / s, LN(z) minus its target is gamma x + this.
template <int F>
__device__ __forceinline__ void target_offset(float (&offset)[2][4], const std::byte* k_tile,
                                              const std::byte* v_tile, const HeadNorm& norm) {
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  std::uint32_t k[4], v[4];
  load_rows<F>(k, k_tile, warp);
  load_rows<F>(v, v_tile, warp);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      offset[j][i] = norm.bias[j][i & 1] - unpacked(v, j, i) + unpacked(k, j, i);
    }
  }
}

/// The scores that a token's step uses: q_i k_j + 1 for j <= i, else 0. The one is the bias.
__device__ __forceinline__ void mask_scores(float (&scores)[2][4]) {
  const Lane at = this_lane();
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool is_past = 8 * j + 2 * at.t + (i & 1) <= at.g + 8 * (i >> 1);
      scores[j][i] = is_past ? scores[j][i] + 1.0F : 0.0F;
    }
  }
}

// ---- sums over features

// With a = gamma^2 and p = gamma (beta - (v - k)), G needs only these sums over features, in one pass over z.
enum Sum { kZ, kZz, kAz, kAzz, kPz, kP, kBar, kBarBar, kForwardSums };

template <int N>
__device__ __forceinline__ void add_z_sums(float (&sums)[2][N], const float (&z)[2][4],
                                           const float (&offset)[2][4], const HeadNorm& norm) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float(&sum)[N] = sums[i >> 1];
      const float az = norm.square(j, i & 1) * z[j][i];
      const float p = norm.weight[j][i & 1] * offset[j][i];
      sum[kZ] += z[j][i];
      sum[kZz] += z[j][i] * z[j][i];
      sum[kAz] += az;
      sum[kAzz] += az * z[j][i];
      sum[kPz] += p * z[j][i];
      sum[kP] += p;
    }
  }
}

template <int N>
__device__ __forceinline__ void add_bar_sums(float (&sums)[2][N], const float (&z_bar)[2][4]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[i >> 1][kBar] += z_bar[j][i];
      sums[i >> 1][kBarBar] += z_bar[j][i] * z_bar[j][i];
    }
  }
}

/// Adds up the four lanes of a token and puts the warp's part where mean_over_features finds it, [warp][lane][N / 2]: by
/// halving, lane t ends with half t & 1 of the sums of token g + 8 (t >> 1).
template <int N>
__device__ __forceinline__ void put_sums(const float (&sums)[2][N], float* buffer) {
  const Lane at = this_lane();
  const bool is_second_token = (at.t & 2) != 0;
  const bool is_second_half = (at.t & 1) != 0;
  float token[N];
#pragma unroll
  for (int s = 0; s < N; ++s) {
    const float sent = is_second_token ? sums[0][s] : sums[1][s];
    token[s] = (is_second_token ? sums[1][s] : sums[0][s]) + __shfl_xor_sync(kAllLanes, sent, 2);
  }
  float* to = buffer + (at.warp * 32 + at.lane) * (N / 2);
#pragma unroll
  for (int s = 0; s < N / 2; ++s) {
    const float sent = is_second_half ? token[s] : token[s + N / 2];
    to[s] = (is_second_half ? token[s + N / 2] : token[s]) + __shfl_xor_sync(kAllLanes, sent, 1);
  }
}

/// The means of the lane's token k, after a barrier.
template <int F, int N>
__device__ __forceinline__ void mean_over_features(float (&mean)[N], const float* buffer, int k) {
  const float* first = buffer + (2 * this_lane().g + k) * N;
#pragma unroll
  for (int s = 0; s < N; s += 2) {
    float2 sum{0, 0};
#pragma unroll
    for (int warp = 0; warp < Layout<F>::kWarps; ++warp) {
      const auto part = *reinterpret_cast<const float2*>(first + warp * (16 * N) + s);
      sum.x += part.x;
      sum.y += part.y;
    }
    mean[s] = sum.x * (1.0F / F);
    mean[s + 1] = sum.y * (1.0F / F);
  }
}

/// A token's LayerNorm at z, x = (z - mean) rstd, and of its inner gradient's e = a x + p.
struct TokenNorm {
  float mean, rstd;
  float mean_ax, mean_axx;
  float mean_e, mean_ex;
};

template <int N>
__device__ __forceinline__ TokenNorm token_norm(const float (&sum)[N], const HeadNorm& norm) {
  const float mean = sum[kZ];
  TokenNorm n;
  n.mean = mean;
  n.rstd = rsqrtf(sum[kZz] - mean * mean + kNormEpsilon);
  n.mean_ax = (sum[kAz] - mean * norm.mean_square) * n.rstd;
  n.mean_axx = (sum[kAzz] - 2 * mean * sum[kAz] + mean * mean * norm.mean_square) * n.rstd * n.rstd;
  n.mean_e = n.mean_ax + sum[kP];
  n.mean_ex = n.mean_axx + (sum[kPz] - mean * sum[kP]) * n.rstd;
  return n;
}

#endif

}  // namespace ttt::kernels::cuda::fused
