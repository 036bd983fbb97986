#pragma once
// The ground that the fused TTT kernels share: mini-batches as tiles in shared memory, matrices as fragments of
// mma.m16n8k16 in registers.
//
// Warps side by side own 16 columns each of a matrix of tokens by features: warp w the columns [16 w, 16 w + 16), as two
// n8 tiles j = 0, 1. Lane 4 g + t then holds tokens g and g + 8 (k = 0, 1) at columns 2t and 2t + 1 of both tiles
// (e = 0, 1):
//   float x[2][4]           x[j][2 k + e], the C fragments
//   std::uint32_t x[4]      x[2 j + k], the same in packed bf16: an A fragment; from load_rows at the warp's own features
//   std::uint32_t x_t[4]    every 8x8 block transposed: at once the B fragments {x_t[2 j], x_t[2 j + 1]} of x (sums over
//                           tokens) and, as {0, 2, 1, 3}, the A fragment of x^T
// A weight matrix W lies as W^T in C fragments (16 own out-features by 8 in-features each), so that two neighbours packed
// are a B fragment of W: no data moves between a step of the state and its use.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "core/base/tensor.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt.h"
#include "kernels/ttt.h"

namespace ttt::kernels::cuda::fused {

constexpr int kTokens = 16;  // of a mini-batch
constexpr float kNormEpsilon = 1e-6F;
constexpr unsigned kAllLanes = 0xffffffffU;

/// Of the F / 16 warps that own F columns, and their tiles of 16 tokens by F features in bf16.
template <int F>
struct Layout {
  static constexpr int kWarps = F / 16;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRowBytes = 2 * F + 16;
  static constexpr int kTileBytes = kTokens * kRowBytes;
  static_assert(kRowBytes / 16 % 2 == 1);
  static constexpr int kRateBytes = kTokens * 4;
  static constexpr int kFragmentBytes = 32 * 16;
  static constexpr int kScalesBytes = kTokens * 4;
  static constexpr int kMeansBytes = F * 4 + 16;  // of F rows of W, and of b
  static constexpr std::int64_t kStateFloats = F * F + F;
};

/// TttInputs on the device.
struct Inputs {
  const BFloat16 *q, *k, *v;             // [B, T, H, F]
  const float *token_lr, *token_scale;   // [B, T, H], [16]
  const float *norm_weight, *norm_bias;  // [H, F]
  int tokens, heads;
};

inline Inputs pointers(const TttInputs& inputs) {
  return {inputs.q.data<BFloat16>(),         inputs.k.data<BFloat16>(),
          inputs.v.data<BFloat16>(),         inputs.token_lr.data<float>(),
          inputs.token_scale.data<float>(),  inputs.norm_weight.data<float>(),
          inputs.norm_bias.data<float>(),    static_cast<int>(inputs.q.size(1)),
          static_cast<int>(inputs.q.size(2))};
}

/// Null where the tensor is absent.
inline float* floats_or_null(const TensorView& view) {
  return view.empty() ? nullptr : view.data<float>();
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

/// A (batch, head) pair's rows in [B, T, H, ...].
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

__device__ __forceinline__ PairRows rows_of_pair(unsigned pair, const Inputs& in) {
  const int sequence = static_cast<int>(pair) / in.heads;
  const int head = static_cast<int>(pair) % in.heads;
  return {sequence * in.tokens * in.heads + head, in.heads, in.tokens};
}

/// The byte offset of 16-byte chunk `chunk` of row `row` in a tile of rows of F bf16. Rows are an odd number of chunks
/// apart, so that eight rows at one chunk, which ldmatrix reads and fragments store, meet no bank conflict; a swizzle
/// would too, but its addresses would not be one register and constants.
template <int F>
__device__ __forceinline__ int tile_offset(int row, int chunk) {
  return row * Layout<F>::kRowBytes + chunk * 16;
}

/// Asks for the rows of a tile, 16 bytes for each of 2 F threads; rows from `count` on become zeros. `first` is the first
/// token's row, `stride` elements from token to token.
template <int F>
__device__ __forceinline__ void copy_tile_async(std::byte* tile, const BFloat16* first,
                                                std::int64_t stride, int count,
                                                int thread = static_cast<int>(threadIdx.x)) {
  static_assert(kTokens * F / 8 == Layout<F>::kThreads);
  const int row = thread / (F / 8);
  const int chunk = thread % (F / 8);
  std::byte* to = tile + tile_offset<F>(row, chunk);
  if (row < count) {
    copy_async_16(to, first + row * stride + 8 * chunk);
  } else {
    *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
  }
}

/// The same for the rates l of a mini-batch: a token that is not there has rate 0 and so no effect on the state.
__device__ __forceinline__ void copy_rates_async(float* rates, const float* token_lr,
                                                 const PairRows& rows, int m,
                                                 int i = static_cast<int>(threadIdx.x)) {
  if (i >= kTokens) return;
  if (i < rows.count(m)) {
    copy_async_4(rates + i, token_lr + rows.row(m * kTokens + i));
  } else {
    rates[i] = 0;
  }
}

/// The tile's 16 rows by columns [16 i, 16 i + 16): the A fragment.
template <int F>
__device__ __forceinline__ void load_rows(std::uint32_t (&x)[4], const std::byte* tile, int i,
                                          int lane = this_lane().lane) {
  ldmatrix_x4(x, tile + tile_offset<F>(lane & 15, lane >> 4) + 32 * i);
}
/// The 16 rows from `row` on, with every 8x8 block transposed.
template <int F>
__device__ __forceinline__ void load_transposed(std::uint32_t (&x_t)[4], const std::byte* tile,
                                                int i, int row = 0, int lane = this_lane().lane) {
  ldmatrix_x4_transposed(x_t,
                         tile + tile_offset<F>(lane & 15, lane >> 4) + tile_offset<F>(row, 2 * i));
}

/// Both with the blocks in the order 0, 2, 1, 3. Of rows: {x[0], x[1]} and {x[2], x[3]} are the B fragments of the tile's
/// transpose; transposed: the A fragment of it. The tensor core wants them in neighbouring registers.
template <int F>
__device__ __forceinline__ int swapped_offset(int lane) {
  return tile_offset<F>((lane & 7) + 8 * (lane >> 4), lane >> 3 & 1);
}
template <int F>
__device__ __forceinline__ void load_rows_swapped(std::uint32_t (&x)[4], const std::byte* tile,
                                                  int i) {
  ldmatrix_x4(x, tile + swapped_offset<F>(this_lane().lane) + 32 * i);
}
template <int F>
__device__ __forceinline__ void load_transposed_swapped(std::uint32_t (&x_t)[4],
                                                        const std::byte* tile, int i) {
  ldmatrix_x4_transposed(x_t, tile + swapped_offset<F>(this_lane().lane) + 32 * i);
}

/// The inverse of load_rows.
template <int F>
__device__ __forceinline__ void store_rows(std::byte* tile, int i, const std::uint32_t (&x)[4]) {
  const Lane at = this_lane();
  if constexpr (kHasStmatrix) {
    stmatrix_x4(tile + tile_offset<F>(at.lane & 15, at.lane >> 4) + 32 * i, x);
  } else {
    std::byte* own = tile + tile_offset<F>(at.g, 0) + 4 * at.t + 32 * i;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      *reinterpret_cast<std::uint32_t*>(own + tile_offset<F>(8 * (r & 1), r >> 1)) = x[r];
    }
  }
}

/// The 16 bytes of a mini-batch's rows that a thread moves: all threads of a block together move a tile.
template <int F>
struct Chunk {
  int token;  // of the mini-batch
  int part;   // of the row

  __device__ Chunk()
      : token(static_cast<int>(threadIdx.x) / (F / 8)),
        part(static_cast<int>(threadIdx.x) % (F / 8)) {}

  /// In a tile, bytes.
  __device__ int offset() const { return tile_offset<F>(token, part); }
  /// In [B, T, H, F].
  __device__ std::int64_t element(const PairRows& rows, int m) const {
    return rows.row(m * kTokens + token) * F + part * 8;
  }
};

/// Asks for the tiles of mini-batch m of several tensors, one tile after the other; rows that are not there become zeros.
template <int F, int N>
__device__ __forceinline__ void copy_tiles_async(std::byte* tiles,
                                                 const BFloat16* const (&tensors)[N],
                                                 const PairRows& rows, const Chunk<F>& chunk,
                                                 int m) {
  std::byte* const to = tiles + chunk.offset();
  const bool is_there = chunk.token < rows.count(m);
  const std::int64_t element = chunk.element(rows, m);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    copy_async_16_or_zeros(to + i * Layout<F>::kTileBytes, tensors[i] + element, is_there);
  }
}

/// Writes the first `count` rows of a tile, which a barrier has made complete, to mini-batch m of a tensor.
template <int F>
__device__ __forceinline__ void write_tile(BFloat16* tensor, const std::byte* tile,
                                           const PairRows& rows, const Chunk<F>& chunk, int m,
                                           int count) {
  if (chunk.token >= count) return;
  store_16(tensor + chunk.element(rows, m), *reinterpret_cast<const uint4*>(tile + chunk.offset()));
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

/// The B fragment of W at in-features [16 i, 16 i + 16) and own out-features 8 j..; `w` is W^T.
template <int kTiles>
__device__ __forceinline__ uint2 operand(const float (&w)[kTiles][4], int i, int j) {
  const float(&upper)[4] = w[2 * i];
  const float(&lower)[4] = w[2 * i + 1];
  return {pack_bf16(upper[2 * j], upper[2 * j + 1]), pack_bf16(lower[2 * j], lower[2 * j + 1])};
}

/// Sums over tokens land as a bias lies: an A fragment of ones times `x_t`.
__device__ __forceinline__ void token_sums(float (&sum)[4], const std::uint32_t (&x_t)[4], int j) {
  constexpr std::uint32_t kOnes[4] = {0x3f803f80U, 0x3f803f80U, 0x3f803f80U, 0x3f803f80U};
  mma_m16n8k16(sum, kOnes, x_t[2 * j], x_t[2 * j + 1]);
}

/// W += factor x^T y for x in a tile and y at the own features; `w` is W^T. The tensor core truncates its sums: it adds
/// up one mini-batch only, and the state in fp32 by rounded additions.
template <int F>
__device__ __forceinline__ void add_outer_product(float (&w)[F / 8][4], const std::byte* x_tile,
                                                  const std::uint32_t (&y_t)[4], float factor,
                                                  int lane = this_lane().lane) {
  const std::uint32_t a[4] = {y_t[0], y_t[2], y_t[1], y_t[3]};
#pragma unroll
  for (int i = 0; i < F / 16; ++i) {
    std::uint32_t x_t[4];
    load_transposed<F>(x_t, x_tile, i, 0, lane);
    float upper[4] = {}, lower[4] = {};
    mma_m16n8k16(upper, a, x_t[0], x_t[1]);
    mma_m16n8k16(lower, a, x_t[2], x_t[3]);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      w[2 * i][r] += factor * upper[r];
      w[2 * i + 1][r] += factor * lower[r];
    }
  }
}

#endif

}  // namespace ttt::kernels::cuda::fused
