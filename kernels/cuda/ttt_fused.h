#pragma once
// What the fused TTT-Linear kernels share: tiles in shared memory, the state in registers, sums over features.
//
// A block of F / 16 warps walks the mini-batches of one (batch, head) pair. Its 16 tokens are the M of mma.m16n8k16;
// warp w owns the out-features [16 w, 16 w + 16), as two n8 tiles j = 0, 1. Lane 4 g + t then holds, of a matrix of
// tokens by features, tokens g and g + 8 (k = 0, 1) at columns 2t and 2t + 1 of both tiles (e = 0, 1):
//   float x[2][4]           x[j][2 k + e], the C fragments
//   std::uint32_t x[4]      x[2 j + k], the same in packed bf16; from load_rows at the warp's own features too
//   std::uint32_t x_t[4]    every 8x8 block transposed: at once the B fragments {x_t[2 j], x_t[2 j + 1]} of x (sums over
//                           tokens) and, as {0, 2, 1, 3}, the A fragment of x^T
// W lies as W^T in C fragments (16 own out-features by 8 in-features), so that two neighbours packed are a B fragment of
// W: no data moves between a step of the state and its use.
//
// Gradients G have no mean over the out-features, and LayerNorm ignores one: row means of W and the mean of b go
// through unchanged. They are taken out at the start and put back at the end; without them the variance is
// mean(z^2) - mean(z)^2 with nothing to cancel, and bf16 rounds what matters.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "core/base/tensor.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda::fused {

constexpr int kTokens = 16;  // of a mini-batch
constexpr float kNormEpsilon = 1e-6F;
constexpr unsigned kAllLanes = 0xffffffffU;
constexpr int kCheckpointEvery =
    128;  // mini-batches; between them the backward restores states (drift 5e-7)

template <int F>
struct Layout {
  static constexpr int kWarps = F / 16;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRowBytes = 2 * F + 16;
  static constexpr int kTileBytes = kTokens * kRowBytes;
  static_assert(kRowBytes / 16 % 2 == 1);
  static constexpr int kRateBytes = kTokens * 4;
  static constexpr int kScalesBytes = kTokens * 4;
  static constexpr int kMeansBytes = F * 4 + 16;  // of F rows of W, and of b
  static constexpr std::int64_t kStateFloats = F * F + F;
};

/// How many states TttSaved::checkpoints holds of each pair: those of the starts of mini-batches 128, 256, ..., and the
/// final one. All without their means, in the order of the threads' registers.
inline std::int64_t num_checkpoints(std::int64_t tokens) {
  const std::int64_t mini_batches = (tokens + kTokens - 1) / kTokens;
  return (mini_batches - 1) / kCheckpointEvery + 1;
}

/// PairRows counts rows of [B, T, H] in int; elements are 64-bit.
inline void expect_countable_rows(const TensorView& q) {
  const std::int64_t rows = q.size(0) * q.size(1) * q.size(2);
  TTT_CHECK(rows <= std::numeric_limits<int>::max(), "{} rows of q are too many for one call",
            rows);
}

/// f(std::integral_constant<int, F>) for the head dims that the kernels are compiled for.
template <typename Function>
void visit_head_dim(std::int64_t features, Function&& f) {
  TTT_CHECK(features == 64 || features == 96, "no fused TTT kernel for head dim {}", features);
  if (features == 64) {
    f(std::integral_constant<int, 64>{});
  } else {
    f(std::integral_constant<int, 96>{});
  }
}

#if defined(__CUDACC__) || defined(TTT_SIMT_EMULATOR)

struct Lane {
  int lane, warp;
  int g, t;  // lane = 4 g + t
};

__device__ __forceinline__ Lane this_lane() {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  return {lane, static_cast<int>(threadIdx.x) >> 5, lane >> 2, lane & 3};
}

/// The rows of this block's pair in [B, T, H, ...].
struct PairRows {
  int first;  // of token 0
  int heads;  // rows from one token to the next
  int tokens;

  __device__ std::int64_t row(int token) const { return first + token * heads; }
  __device__ int num_mini_batches() const { return (tokens + kTokens - 1) / kTokens; }
  /// Tokens of mini-batch m: 16, or fewer in the last.
  __device__ int count(int m) const {
    return tokens - m * kTokens < kTokens ? tokens - m * kTokens : kTokens;
  }
};

__device__ __forceinline__ PairRows rows_of_pair(int tokens, int heads) {
  const int sequence = static_cast<int>(blockIdx.x) / heads;
  const int head = static_cast<int>(blockIdx.x) % heads;
  return {sequence * tokens * heads + head, heads, tokens};
}

/// The byte offset of 16-byte chunk `chunk` of row `row` in a tile of rows of F bf16. Rows are an odd number of chunks
/// apart, so that eight rows at one chunk, which ldmatrix reads and fragments store, meet no bank conflict; a swizzle
/// would too, but its addresses would not be one register and constants.
template <int F>
__device__ __forceinline__ int tile_offset(int row, int chunk) {
  return row * Layout<F>::kRowBytes + chunk * 16;
}

/// The scales c to shared memory: fewer registers, and c_r is another one in a short last mini-batch.
__device__ __forceinline__ void copy_scales(float* scales, const float* token_scale) {
  if (threadIdx.x < kTokens) scales[threadIdx.x] = token_scale[threadIdx.x];
}

/// Asks for the rows of a tile, 16 bytes a thread; rows from `count` on become zeros.
template <int F>
__device__ __forceinline__ void copy_tile_async(std::byte* tile, const BFloat16* first,
                                                std::int64_t stride, int count) {
  static_assert(kTokens * F / 8 == Layout<F>::kThreads);
  const int row = static_cast<int>(threadIdx.x) / (F / 8);
  const int chunk = static_cast<int>(threadIdx.x) % (F / 8);
  std::byte* to = tile + tile_offset<F>(row, chunk);
  if (row < count) {
    copy_async_16(to, first + row * stride + 8 * chunk);
  } else {
    *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
  }
}

/// The same for the rates l of a mini-batch: a token that is not there has rate 0 and so no effect on the state.
__device__ __forceinline__ void copy_rates_async(float* rates, const float* token_lr,
                                                 const PairRows& rows, int m) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= kTokens) return;
  if (i < rows.count(m)) {
    copy_async_4(rates + i, token_lr + rows.row(m * kTokens + i));
  } else {
    rates[i] = 0;
  }
}

/// The tile's 16 rows by columns [16 i, 16 i + 16): the A fragment.
template <int F>
__device__ __forceinline__ void load_rows(std::uint32_t (&x)[4], const std::byte* tile, int i) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  ldmatrix_x4(x, tile + tile_offset<F>(lane & 15, 2 * i + (lane >> 4)));
}
/// The 16 rows from `row` on, with every 8x8 block transposed.
template <int F>
__device__ __forceinline__ void load_transposed(std::uint32_t (&x_t)[4], const std::byte* tile,
                                                int i, int row = 0) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  ldmatrix_x4_transposed(x_t, tile + tile_offset<F>(row + (lane & 15), 2 * i + (lane >> 4)));
}

__device__ __forceinline__ float unpacked(const std::uint32_t (&x)[4], int j, int i) {
  return (i & 1) != 0 ? high_bf16(x[2 * j + (i >> 1)]) : low_bf16(x[2 * j + (i >> 1)]);
}

__device__ __forceinline__ void pack(std::uint32_t (&packed)[4], const float (&x)[2][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    packed[i] = pack_bf16(x[i >> 1][2 * (i & 1)], x[i >> 1][2 * (i & 1) + 1]);
  }
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

__device__ __forceinline__ void transpose_blocks(std::uint32_t (&x_t)[4],
                                                 const std::uint32_t (&x)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x_t[i] = movmatrix_transposed(x[i]);
}

/// The A fragment of the transpose: its blocks trade places too.
__device__ __forceinline__ void transpose_matrix(std::uint32_t (&x_t)[4],
                                                 const std::uint32_t (&x)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x_t[i] = movmatrix_transposed(x[2 * (i & 1) + (i >> 1)]);
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
