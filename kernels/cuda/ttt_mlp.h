#pragma once
// What the forward and the backward kernel of TTT-MLP share; the equations are in kernels/ttt.h. Head dim 64, hidden
// width 256, mini-batches of 16.
//
// A (batch, head) pair's hidden width is cut into four slices of 64 units. A slice is four warps; warp `quarter` of it
// holds in registers, in fp32 and as C fragments (simt.h),
//   w1^T [16 own hidden units x 64 inputs] and w2^T [16 own outputs x the slice's 64 hidden units].
// Two neighbours packed to bf16 are B fragments of k w1 and x2 w2, so nothing is transposed. Activations are tiles of 16
// tokens x 64 features in bf16 in shared memory. Sums over slices go, as one partial sum a slice, to the warp that owns
// the token: a LayerNorm is the work of one warp, two features a lane.
//
// w2's rows and b2 are kept centred over features: inner gradients have zero mean over features, so these means never
// change, and LayerNorm does not see them. Without them its one-pass variance does not cancel. They are added back to
// the final state that is handed out; the saved one stays centred.

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/ttt.h"

namespace ttt::kernels::cuda {

/// How a pair is laid over the device: 16 warps of one block, or a cluster of four blocks of one slice each (compute
/// capability 9.0 and later).
enum class MlpShape { kOneBlock, kCluster };

/// fused_mlp_forward in a given shape; both give the same bits.
void fused_mlp_forward_as(MlpShape shape, const TttInputs& inputs, const TttState& initial,
                          TensorView out, const TttState& final_state, TttSaved* saved,
                          Stream& stream);

namespace mlp {

constexpr int kTokens = 16;
constexpr int kFeatures = 64;
constexpr int kSlices = 4;
constexpr int kHidden = kSlices * kFeatures;  // a slice is as wide as the head
constexpr int kSliceThreads = 128;
constexpr int kTileBytes = kTokens * kFeatures * 2;
constexpr int kStateSize = 2 * kFeatures * kHidden + kHidden + kFeatures;

/// The fast weights of all pairs; null where absent.
struct StatePointers {
  float *w1 = nullptr, *b1 = nullptr, *w2 = nullptr, *b2 = nullptr;
};

inline StatePointers pointers(const TttState& state) {
  if (state.w1.empty()) return {};
  return {state.w1.data<float>(), state.b1.data<float>(), state.w2.data<float>(),
          state.b2.data<float>()};
}

/// TttSaved::checkpoints is one state of every pair: all w1, all b1, all w2, all b2.
inline StatePointers pointers(const Tensor& checkpoints, std::int64_t num_pairs) {
  float* const w1 = checkpoints.data<float>();
  float* const b1 = w1 + num_pairs * kFeatures * kHidden;
  float* const w2 = b1 + num_pairs * kHidden;
  return {w1, b1, w2, w2 + num_pairs * kHidden * kFeatures};
}

/// TttInputs on the device.
struct Inputs {
  const BFloat16 *q, *k, *v;
  const float *token_lr, *token_scale, *norm_weight, *norm_bias;
  int num_tokens, num_heads;
};

inline Inputs pointers(const TttInputs& inputs) {
  return {inputs.q.data<BFloat16>(),         inputs.k.data<BFloat16>(),
          inputs.v.data<BFloat16>(),         inputs.token_lr.data<float>(),
          inputs.token_scale.data<float>(),  inputs.norm_weight.data<float>(),
          inputs.norm_bias.data<float>(),    static_cast<int>(inputs.q.size(1)),
          static_cast<int>(inputs.q.size(2))};
}

}  // namespace mlp
}  // namespace ttt::kernels::cuda

#if defined(__CUDACC__) || defined(TTT_SIMT_EMULATOR)
#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda::mlp {

using Fragment = std::uint32_t[4];
using Square = float[2][4];     // 16 x 16: two C fragments side by side
using StateTile = float[8][4];  // 16 x 64: eight

constexpr std::uint32_t kAllLanes = 0xffffffffU;

/// Where a thread stands in its pair.
struct Place {
  int lane, g, t;                // lane = 4 g + t
  int matrix_row, matrix_chunk;  // what this lane gives to ldmatrix
  int local_slice, slice;        // in this block, in the pair
  int quarter;                   // warp of the slice
  int token;                     // whose row this warp owns

  /// `slice_of_block` is that of a block which has only one; -1 where it has all.
  __device__ explicit Place(int slice_of_block) {
    const int thread = opaque(static_cast<int>(threadIdx.x));
    lane = thread & 31;
    g = lane >> 2;
    t = lane & 3;
    matrix_row = lane & 15;
    matrix_chunk = lane >> 4;
    local_slice = thread / kSliceThreads;
    slice = slice_of_block < 0 ? local_slice : slice_of_block;
    quarter = (thread >> 5) & 3;
    token = slice * 4 + quarter;
  }
  [[nodiscard]] __device__ int first_hidden() const { return slice * 64 + quarter * 16; }
  [[nodiscard]] __device__ int first_output() const { return quarter * 16; }
};

/// A (batch, head) pair's rows in the tensors [B, T, H, F].
struct Pair {
  int index, head;
  int stride;              // elements from token to token
  std::int64_t first_row;  // the element where the first token's row begins

  __device__ Pair(unsigned number, const Inputs& in)
      : index(static_cast<int>(number)),
        head(index % in.num_heads),
        stride(in.num_heads * kFeatures),
        first_row(std::int64_t{index / in.num_heads} * in.num_tokens * stride + head * kFeatures) {}
  /// The element where a token's row begins.
  [[nodiscard]] __device__ std::int64_t row(int token) const {
    return first_row + static_cast<std::int64_t>(token) * stride;
  }
};

__device__ __forceinline__ void slice_barrier(const Place& at) {
  named_barrier(1 + at.local_slice, kSliceThreads);
}

// --- tiles and fragments ---

/// Columns 16 step.. of a tile as an A fragment; also, as {0, 2} and {1, 3}, B fragments of the tile's transpose.
__device__ __forceinline__ void load_fragment(Fragment& a, const std::byte* tile, int step,
                                              const Place& at) {
  ldmatrix_x4(a, tile + swizzled(at.matrix_row, 2 * step + at.matrix_chunk));
}
/// Columns 16 step.. of 16 rows as B fragments {0, 1} and {2, 3}; `reordered`, the A fragment of the transpose.
__device__ __forceinline__ void load_transposed(Fragment& b, const std::byte* tile, int step,
                                                const Place& at, int first_row = 0) {
  ldmatrix_x4_transposed(b, tile + swizzled(first_row + at.matrix_row, 2 * step + at.matrix_chunk));
}
__device__ __forceinline__ void reorder(Fragment& a, const Fragment& b) {
  a[0] = b[0];
  a[1] = b[2];
  a[2] = b[1];
  a[3] = b[3];
}
/// The A fragment of the transpose.
__device__ __forceinline__ void transpose(Fragment& to, const Fragment& from) {
  to[0] = movmatrix_transposed(from[0]);
  to[1] = movmatrix_transposed(from[2]);
  to[2] = movmatrix_transposed(from[1]);
  to[3] = movmatrix_transposed(from[3]);
}
/// `c` as an A fragment.
__device__ __forceinline__ void pack(Fragment& a, const Square& c) {
  for (int j = 0; j < 2; ++j) {
    for (int k = 0; k < 2; ++k) a[2 * j + k] = pack_bf16(c[j][2 * k], c[j][2 * k + 1]);
  }
}
/// Element (j, i) of a Square that is packed.
__device__ __forceinline__ float element(const Fragment& a, int j, int i) {
  const std::uint32_t pair = a[2 * j + (i >> 1)];
  return (i & 1) != 0 ? high_bf16(pair) : low_bf16(pair);
}

/// Two neighbours of a tile, at an even column.
__device__ __forceinline__ std::uint32_t& pair_at(std::byte* tile, int row, int column) {
  return *reinterpret_cast<std::uint32_t*>(tile + swizzled(row, column >> 3) + 2 * (column & 7));
}
/// Puts packed `a` into columns 16 quarter.. of a tile.
__device__ __forceinline__ void store_fragment(std::byte* tile, const Fragment& a,
                                               const Place& at) {
  for (int j = 0; j < 2; ++j) {
    for (int k = 0; k < 2; ++k) {
      pair_at(tile, at.g + 8 * k, 16 * at.quarter + 8 * j + 2 * at.t) = a[2 * j + k];
    }
  }
}
/// Rounds this warp's state into rows 16 quarter.. of a [64 x 64] matrix for the other warps of the slice.
__device__ __forceinline__ void publish(std::byte* matrix, const StateTile& w, const Place& at) {
#pragma unroll
  for (int tile = 0; tile < 8; ++tile) {
    for (int k = 0; k < 2; ++k) {
      pair_at(matrix, 16 * at.quarter + at.g + 8 * k, 8 * tile + 2 * at.t) =
          pack_bf16(w[tile][2 * k], w[tile][2 * k + 1]);
    }
  }
}

/// The place of an element of an fp32 matrix with rows of 64. Pairs in the order of C fragments and single elements in
/// the order of the transpose's B fragments both meet no bank conflict.
__device__ __forceinline__ int wide_index(int row, int column) {
  return row * 64 + (column ^ (((row ^ (row >> 2)) & 3) << 3));
}

// --- products; c is columns 16 quarter.. of the result, over the lanes as C fragments ---

/// c += a b^T of two tiles.
__device__ __forceinline__ void add_rows_by_rows(Square& c, const std::byte* a, const std::byte* b,
                                                 const Place& at) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    Fragment left, right;
    load_fragment(left, a, step, at);
    load_fragment(right, b, step, at);
    mma_m16n8k16(c[0], left, right[0], right[2]);
    mma_m16n8k16(c[1], left, right[1], right[3]);
  }
}
/// c += a w for columns 16 step.. of a, where w^T is this warp's state.
__device__ __forceinline__ void add_times_state(Square& c, const Fragment& a, const StateTile& w,
                                                int step) {
  for (int j = 0; j < 2; ++j) {
    mma_m16n8k16(c[j], a, pack_bf16(w[2 * step][2 * j], w[2 * step][2 * j + 1]),
                 pack_bf16(w[2 * step + 1][2 * j], w[2 * step + 1][2 * j + 1]));
  }
}
__device__ __forceinline__ void add_times_state(Square& c, const std::byte* a, const StateTile& w,
                                                const Place& at) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    Fragment left;
    load_fragment(left, a, step, at);
    add_times_state(c, left, w, step);
  }
}
/// What the read step needs: z_bar += x_bar w, scores += x_bar x^T; the second one also z += x w.
__device__ __forceinline__ void read_outputs(Square& z_bar, Square& scores, const std::byte* x,
                                             const std::byte* x_bar, const StateTile& w,
                                             const Place& at) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    Fragment key, query;
    load_fragment(key, x, step, at);
    load_fragment(query, x_bar, step, at);
    mma_m16n8k16(scores[0], query, key[0], key[2]);
    mma_m16n8k16(scores[1], query, key[1], key[3]);
    add_times_state(z_bar, query, w, step);
  }
}
__device__ __forceinline__ void read_layer(Square& z, Square& z_bar, Square& scores,
                                           const std::byte* x, const std::byte* x_bar,
                                           const StateTile& w, const Place& at) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    Fragment key, query;
    load_fragment(key, x, step, at);
    load_fragment(query, x_bar, step, at);
    mma_m16n8k16(scores[0], query, key[0], key[2]);
    mma_m16n8k16(scores[1], query, key[1], key[3]);
    add_times_state(z, key, w, step);
    add_times_state(z_bar, query, w, step);
  }
}
/// c += a m for a tile and a published [64 x 64] matrix.
__device__ __forceinline__ void add_times_matrix(Square& c, const std::byte* a, const std::byte* m,
                                                 const Place& at) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    Fragment left, right;
    load_fragment(left, a, step, at);
    load_transposed(right, m, at.quarter, at, 16 * step);
    mma_m16n8k16(c[0], left, right[0], right[1]);
    mma_m16n8k16(c[1], left, right[2], right[3]);
  }
}
/// w += scale a tile, where `a` is the A fragment of [16 x 16 tokens]. The tensor core truncates its sums: it adds up
/// one mini-batch only, and the state in fp32 by rounded additions.
__device__ __forceinline__ void update_state(StateTile& w, const Fragment& a, const std::byte* tile,
                                             float scale, const Place& at) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    Fragment right;
    load_transposed(right, tile, step, at);
    Square sum = {};
    mma_m16n8k16(sum[0], a, right[0], right[1]);
    mma_m16n8k16(sum[1], a, right[2], right[3]);
    for (int i = 0; i < 4; ++i) {
      w[2 * step][i] += scale * sum[0][i];
      w[2 * step + 1][i] += scale * sum[1][i];
    }
  }
}
/// sums[j][e] = sum over tokens of column 8 j + 2 t + e; `b` are B fragments of 16 tokens by 16 columns.
__device__ __forceinline__ void sum_over_tokens(float (&sums)[2][2], const Fragment& b) {
  constexpr std::uint32_t kOnes = 0x3f803f80U;
  const Fragment ones = {kOnes, kOnes, kOnes, kOnes};
  for (int j = 0; j < 2; ++j) {
    float sum[4] = {};
    mma_m16n8k16(sum, ones, b[2 * j], b[2 * j + 1]);
    sums[j][0] = sum[0];
    sums[j][1] = sum[1];
  }
}

// --- the mini-batch's step sizes ---

/// token_scale of this lane's two rows.
struct RowScales {
  float low, high;
  __device__ RowScales(const float* token_scale, const Place& at)
      : low(token_scale[at.g]), high(token_scale[at.g + 8]) {}
  [[nodiscard]] __device__ float of(int i) const { return i < 2 ? low : high; }
};
/// Whether element (j, i) of a [token x token] Square has key <= query.
__device__ __forceinline__ bool is_causal(int j, int i, const Place& at) {
  return 8 * j + 2 * at.t + (i & 1) <= at.g + 8 * (i >> 1);
}
/// a = -(M / l * (scores + one)): what multiplies l G in the read step.
__device__ __forceinline__ void read_weights(Fragment& a, Square& scores, float one,
                                             const RowScales& scales, const Place& at) {
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      scores[j][i] = is_causal(j, i, at) ? -scales.of(i) * (scores[j][i] + one) : 0.0F;
    }
  }
  pack(a, scores);
}

/// f(tile, i, row, column) for this thread's elements of a StateTile.
template <typename F>
__device__ __forceinline__ void for_each_state_element(const Place& at, F&& f) {
#pragma unroll
  for (int tile = 0; tile < 8; ++tile) {
    for (int i = 0; i < 4; ++i) f(tile, i, at.g + 8 * (i >> 1), 8 * tile + 2 * at.t + (i & 1));
  }
}

/// f(j, e, column) for this thread's entries among a warp's 16; lanes with equal t have the same.
template <typename F>
__device__ __forceinline__ void for_each_bias(const Place& at, F&& f) {
  for (int j = 0; j < 2; ++j) {
    for (int e = 0; e < 2; ++e) f(j, e, 8 * j + 2 * at.t + e);
  }
}

/// Queues the copy of 16 tokens' rows into a tile, one 16-byte chunk for each of 128 threads; rows from `count` on are
/// zeros. `rows` is the first token's row, `stride` elements from token to token.
__device__ __forceinline__ void load_tile(std::byte* tile, const BFloat16* rows,
                                          std::int64_t stride, int count, int thread) {
  const int row = thread >> 3;
  const int chunk = thread & 7;
  std::byte* const to = tile + swizzled(row, chunk);
  if (row < count) {
    copy_async_16(to, rows + static_cast<std::int64_t>(row) * stride + chunk * 8);
  } else {
    *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
  }
}
__device__ __forceinline__ void load_rates(float* rates, const float* first, int stride, int count,
                                           int token) {
  if (token < count) {
    copy_async_4(rates + token, first + static_cast<std::int64_t>(token) * stride);
  } else {
    rates[token] = 0.0F;
  }
}

}  // namespace ttt::kernels::cuda::mlp
#endif
