#pragma once
// What the fused TTT-Linear kernels share beside tiles and fragments (kernels/cuda/ttt_tiles.h): LayerNorm and its sums
// over features. A block of F / 16 warps walks the mini-batches of one (batch, head) pair.
//
// Gradients G have no mean over the out-features, and LayerNorm ignores one: row means of W and the mean of b go
// through unchanged. They are taken out at the start and put back at the end; without them the variance is mean(z^2), and
// bf16 rounds what matters.

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

/// LayerNorm's weight gamma and bias beta at the lane's features.
struct HeadNorm {
  float weight[2][2];  // [j][e]
  float bias[2][2];

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
  return norm;
}

/// k - v at the own features, exactly: [k | v] times [I; -I], a product for each 8 of them.
template <int F>
__device__ __forceinline__ void key_minus_value(float (&difference)[2][4], const std::byte* k_tile,
                                                const std::byte* v_tile) {
  const Lane at = this_lane();
  const std::uint32_t one = 2 * at.t == at.g ? 0x3f80U : 2 * at.t + 1 == at.g ? 0x3f800000U : 0;
  const std::uint32_t minus_one = one ^ 0x80008000U;
  const int lane = opaque(at.lane);
  const std::byte* const tile = lane < 16 ? k_tile : v_tile;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    std::uint32_t rows[4];
    ldmatrix_x4(rows, tile + tile_offset<F>(lane & 15, 2 * at.warp) + 16 * j);
#pragma unroll
    for (int r = 0; r < 4; ++r) difference[j][r] = 0;
    mma_m16n8k16(difference[j], rows, one, minus_one);
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

/// q k^T + 1 for j <= i.
template <int F>
__device__ __forceinline__ void scores_of(float (&scores)[2][4], const std::byte* q_tile,
                                          const std::byte* k_tile) {
#pragma unroll
  for (int i = 0; i < 8; ++i) scores[i / 4][i % 4] = 0;
#pragma unroll
  for (int i = 0; i < F / 16; ++i) {
    std::uint32_t q[4], k[4];
    load_rows<F>(q, q_tile, i);
    load_rows_swapped<F>(k, k_tile, i);
    mma_m16n8k16(scores[0], q, k[0], k[1]);
    mma_m16n8k16(scores[1], q, k[2], k[3]);
  }
  mask_scores(scores);
}

/// A fragment that one warp makes for all, 16 bytes a lane.
__device__ __forceinline__ void put_fragment(std::byte* shared, const std::uint32_t (&x)[4]) {
  reinterpret_cast<uint4*>(shared)[this_lane().lane] = uint4{x[0], x[1], x[2], x[3]};
}
__device__ __forceinline__ void get_fragment(std::uint32_t (&x)[4], const std::byte* shared) {
  const uint4 words = reinterpret_cast<const uint4*>(shared)[this_lane().lane];
  x[0] = words.x;
  x[1] = words.y;
  x[2] = words.z;
  x[3] = words.w;
}

// ---- sums over features

// With a = gamma^2 and p = gamma (beta - (v - k)), G needs only these sums over features, in one pass over z; bar: of Z'.
// Not the means of Z and Z': W and b have none; what bf16's rounding of W and G brings in (docs/numerics.md, "TTT") is
// below what it does to each element.
enum Sum { kZz, kAz, kAzz, kPz, kP, kBarBar, kForwardSums };

/// With p.
template <int N>
__device__ __forceinline__ void add_z_sums(float (&sums)[2][N], const float (&z)[2][4],
                                           const float (&p)[2][4], const HeadNorm& norm) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float(&sum)[N] = sums[i >> 1];
      const float az = norm.square(j, i & 1) * z[j][i];
      sum[kZz] += z[j][i] * z[j][i];
      sum[kAz] += az;
      sum[kAzz] += az * z[j][i];
      sum[kP] += p[j][i];
      sum[kPz] += p[j][i] * z[j][i];
    }
  }
}

template <int N>
__device__ __forceinline__ void add_bar_sums(float (&sums)[2][N], const float (&z_bar)[2][4]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[i >> 1][kBarBar] += z_bar[j][i] * z_bar[j][i];
    }
  }
}

/// The token whose sums lane 4 g + t completes: it gets the first half of them if t is even, else the second.
__device__ __forceinline__ int token_of_lane() {
  const Lane at = this_lane();
  return at.g + 8 * (at.t >> 1);
}
__device__ __forceinline__ bool has_first_half() { return (this_lane().t & 1) == 0; }

template <int N>
constexpr int kHalf = (N + 1) / 2;
/// From one lane's half of N sums to the next one's: whole 16 bytes.
template <int N>
constexpr int kPartFloats = (kHalf<N> + 3) / 4 * 4;

/// Adds up the four lanes of a token, by halving, and puts the warp's part where means_of_token finds it.
template <int N>
__device__ __forceinline__ void put_sums(const float (&sums)[2][N], float* buffer) {
  const Lane at = this_lane();
  const bool is_second_token = (at.t & 2) != 0;
  const bool is_first_half = has_first_half();
  float token[N];
#pragma unroll
  for (int s = 0; s < N; ++s) {
    const float sent = is_second_token ? sums[0][s] : sums[1][s];
    token[s] = (is_second_token ? sums[1][s] : sums[0][s]) + __shfl_xor_sync(kAllLanes, sent, 2);
  }
  float part[kPartFloats<N>];
#pragma unroll
  for (int s = 0; s < kPartFloats<N>; ++s) {
    const int other = s + kHalf<N> < N ? s + kHalf<N> : s;  // there may be one less
    if (s >= kHalf<N>) {
      part[s] = 0;
    } else {
      part[s] = (is_first_half ? token[s] : token[other]) +
                __shfl_xor_sync(kAllLanes, is_first_half ? token[other] : token[s], 1);
    }
  }
  auto* const to = reinterpret_cast<float4*>(buffer + (at.warp * 32 + at.lane) * kPartFloats<N>);
#pragma unroll
  for (int s = 0; s < kPartFloats<N>; s += 4) {
    to[s / 4] = float4{part[s], part[s + 1], part[s + 2], part[s + 3]};
  }
}

/// After a barrier: the means over all features of the lane's token; complete in lanes of the first half.
template <int F, int N>
__device__ __forceinline__ void means_of_token(float (&mean)[N], const float* buffer) {
  const float* const first = buffer + this_lane().lane * kPartFloats<N>;
  float part[kPartFloats<N>] = {};
#pragma unroll
  for (int warp = 0; warp < Layout<F>::kWarps; ++warp) {
#pragma unroll
    for (int s = 0; s < kPartFloats<N>; s += 4) {
      const auto four = *reinterpret_cast<const float4*>(first + warp * 32 * kPartFloats<N> + s);
      part[s] += four.x;
      part[s + 1] += four.y;
      part[s + 2] += four.z;
      part[s + 3] += four.w;
    }
  }
#pragma unroll
  for (int s = 0; s < kHalf<N>; ++s) {
    mean[s] = part[s] * (1.0F / F);
    if (s + kHalf<N> < N) mean[s + kHalf<N>] = __shfl_xor_sync(kAllLanes, mean[s], 1);
  }
}

/// What lanes that complete a token's sums tell those that hold its features, within a warp: 16 bytes twice.
struct TokenTerms {
  float4* own;  // of this warp, [2][16]

  __device__ explicit TokenTerms(std::byte* shared)
      : own(reinterpret_cast<float4*>(shared) + this_lane().warp * 2 * kTokens) {}
  __device__ void put(const float4& first, const float4& second) const {
    const int token = token_of_lane();
    if (has_first_half()) {
      own[token] = first;
      own[kTokens + token] = second;
    }
    __syncwarp();
  }
  __device__ const float4& first(int token) const { return own[token]; }
  __device__ const float4& second(int token) const { return own[kTokens + token]; }
};

/// 1 / s of a token's LayerNorm: x = z rstd.
__device__ __forceinline__ float norm_rstd(float mean_square) {
  return rsqrt_of_normal(mean_square + kNormEpsilon);
}

/// A token's LayerNorm at z, and of its inner gradient's e = a x + p.
struct TokenNorm {
  float rstd;
  float mean_ax, mean_axx;
  float mean_e, mean_ex;

  template <int N>
  __device__ explicit TokenNorm(const float (&mean)[N])
      : rstd(norm_rstd(mean[kZz])),
        mean_ax(mean[kAz] * rstd),
        mean_axx(mean[kAzz] * rstd * rstd),
        mean_e(mean_ax + mean[kP]),
        mean_ex(mean_axx + mean[kPz] * rstd) {}
};

#endif

}  // namespace ttt::kernels::cuda::fused
