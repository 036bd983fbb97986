#pragma once
// What the forward and the backward kernel of TTT-MLP share; the equations are in kernels/ttt.h. Head dim F of 64 or 96,
// hidden width 4 F, mini-batches of 16; tiles and fragments are those of kernels/cuda/ttt_tiles.h.
//
// A (batch, head) pair's hidden width is cut into four slices of F units. A slice is F / 16 warps; warp w of it holds in
// registers, in fp32,
//   w1^T [16 own hidden units x F inputs] and w2^T [16 own outputs x the slice's F hidden units].
// Sums over slices go, as one partial sum a slice, to the warp that owns the token, one of the first four of a slice: a
// LayerNorm is the work of one warp.
//
// A slice is a block of a cluster of four (compute capability 9.0), which exchange through distributed shared memory, or
// four slices are one block. The second is for the forward with head dim 64 alone: of its 16 warps a thread has 128
// registers, 64 of them state. Head dim 96 has 24 warps and 96 registers of state a thread, and 65536 / 768 = 85
// registers to hold them; the backward has as much again in gradients, 64 KiB a slice more than such a block's shared
// memory holds.
//
// w2's rows and b2 are kept centred over features: inner gradients have zero mean over features, so these means never
// change, and LayerNorm does not see them. Without them its one-pass variance does not cancel. They are added back to
// the final state that is handed out; the saved one stays centred.

#include <cstdint>

#include "kernels/cuda/ttt_tiles.h"
#include "kernels/ttt.h"

namespace ttt::kernels::cuda::mlp {

// NOLINTBEGIN(misc-unused-using-decls): for the kernels
using fused::add_outer_product;
using fused::Inputs;
using fused::kAllLanes;
using fused::kTokens;
using fused::Layout;
using fused::load_rows;
using fused::load_transposed;
using fused::pack;
using fused::PairRows;
using fused::pointers;
using fused::tile_offset;
using fused::transpose_blocks;
using fused::transpose_matrix;
using fused::unpacked;
// NOLINTEND(misc-unused-using-decls)

// A kernel for clusters stops on a device that it has not been compiled with clusters for.
#if defined(TTT_SIMT_EMULATOR) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
constexpr bool kHasClusters = true;
__device__ __forceinline__ void stop_without_clusters() {}
#else
constexpr bool kHasClusters = false;
__device__ __forceinline__ void stop_without_clusters() { __trap(); }
#endif

constexpr int kSlices = 4;
constexpr int kOwnedTokens = kTokens / kSlices;  // by the warps of a slice
template <int F>
constexpr int kHidden = 4 * F;  // = kSlices slices as wide as the head
/// Elements of a pair's state.
template <int F>
constexpr std::int64_t kStateSize{8 * F * F + 5 * F};

/// The fast weights of all pairs; null where absent.
struct StatePointers {
  float *w1 = nullptr, *b1 = nullptr, *w2 = nullptr, *b2 = nullptr;
};

inline StatePointers pointers(const TttState& state) {
  return {fused::floats_or_null(state.w1), fused::floats_or_null(state.b1),
          fused::floats_or_null(state.w2), fused::floats_or_null(state.b2)};
}

/// TttSaved::checkpoints is one state of every pair: all w1, all b1, all w2, all b2.
template <int F>
StatePointers pointers(const Tensor& checkpoints, std::int64_t num_pairs) {
  float* const w1 = checkpoints.data<float>();
  float* const b1 = w1 + num_pairs * F * kHidden<F>;
  float* const w2 = b1 + num_pairs * kHidden<F>;
  return {w1, b1, w2, w2 + num_pairs * kHidden<F> * F};
}

using Fragment = std::uint32_t[4];
using Square = float[2][4];  // 16 x 16: two C fragments side by side
template <int F>
using StateTile = float[F / 8][4];  // 16 x F, transposed

/// Where a thread stands in its pair.
template <int F>
struct Place {
  int lane, g, t;          // lane = 4 g + t
  int local_slice, slice;  // in this block, in the pair
  int warp;                // of the slice

  /// `slice_of_block` is that of a block which has only one; -1 where it has all.
  __device__ explicit Place(int slice_of_block) {
    const int thread = opaque(static_cast<int>(threadIdx.x));
    lane = thread & 31;
    g = lane >> 2;
    t = lane & 3;
    local_slice = slice_of_block < 0 ? thread / Layout<F>::kThreads : 0;
    slice = slice_of_block < 0 ? local_slice : slice_of_block;
    warp = (thread - local_slice * Layout<F>::kThreads) >> 5;
  }
  [[nodiscard]] __device__ int first_hidden() const { return slice * F + warp * 16; }
  [[nodiscard]] __device__ int first_output() const { return warp * 16; }
  [[nodiscard]] __device__ bool owns_token() const { return warp < kOwnedTokens; }
  /// Of the slice's warps the first two make the one of two matrices of tokens by tokens, the next two the other.
  [[nodiscard]] __device__ bool makes_scores(int which) const { return warp >> 1 == which; }
  [[nodiscard]] __device__ int score_tile() const { return warp & 1; }
  /// Of a mini-batch, whose row this warp owns.
  [[nodiscard]] __device__ int token() const { return slice * kOwnedTokens + warp; }
};

// --- tiles and fragments ---

/// Two neighbours of a tile, at an even column.
template <int F>
__device__ __forceinline__ std::uint32_t& pair_at(std::byte* tile, int row, int column) {
  return *reinterpret_cast<std::uint32_t*>(tile + tile_offset<F>(row, column >> 3) +
                                           2 * (column & 7));
}
/// Puts packed `a` into the own columns of a tile.
template <int F>
__device__ __forceinline__ void store_fragment(std::byte* tile, const Fragment& a,
                                               const Place<F>& at) {
  for (int j = 0; j < 2; ++j) {
    for (int k = 0; k < 2; ++k) {
      pair_at<F>(tile, at.g + 8 * k, 16 * at.warp + 8 * j + 2 * at.t) = a[2 * j + k];
    }
  }
}
/// load_transposed for use as the A fragment of the transpose, whose registers are then neighbours.
template <int F>
__device__ __forceinline__ void load_transposed_left(Fragment& x_t, const std::byte* tile, int i,
                                                     int lane) {
  Fragment a;
  ldmatrix_x4_transposed(
      a, tile + tile_offset<F>((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1) + 32 * i);
  x_t[0] = a[0];
  x_t[1] = a[2];
  x_t[2] = a[1];
  x_t[3] = a[3];
}
/// One of this thread's own fragments, from one phase to a later one.
__device__ __forceinline__ void keep_fragment(std::byte* of_threads, const Fragment& x) {
  reinterpret_cast<uint4*>(of_threads)[threadIdx.x] = uint4{x[0], x[1], x[2], x[3]};
}
__device__ __forceinline__ void load_kept(Fragment& x, const std::byte* of_threads) {
  const uint4 words = reinterpret_cast<const uint4*>(of_threads)[threadIdx.x];
  x[0] = words.x;
  x[1] = words.y;
  x[2] = words.z;
  x[3] = words.w;
}
/// A thread's 16 bytes of the tiles of a mini-batch, on their way from rows `width` wide of [B, T, H, ...]; tokens that
/// are not there are zeros.
template <int F>
struct TileCopy {
  int place;            // in a tile
  std::int64_t offset;  // in a tensor
  bool is_there;

  __device__ TileCopy(const PairRows& rows, int m, int width, int thread) {
    const int token = thread / (F / 8);
    const int chunk = thread % (F / 8);
    place = tile_offset<F>(token, chunk);
    offset = rows.row(m * kTokens + token) * width + 8 * chunk;
    is_there = token < rows.count(m);
  }
  __device__ void operator()(std::byte* tile, const BFloat16* from) const {
    if (is_there) {
      copy_async_16(tile + place, from + offset);
    } else {
      *reinterpret_cast<uint4*>(tile + place) = uint4{0, 0, 0, 0};
    }
  }
};
/// Rounds this warp's state into the own rows of an [F x F] matrix for the other warps of the slice. It is rounded anew: the
/// operands of an earlier product, kept until here, would take half as many registers as the state.
template <int F>
__device__ __forceinline__ void publish(std::byte* matrix, const StateTile<F>& w,
                                        const Place<F>& at) {
#pragma unroll
  for (int tile = 0; tile < F / 8; ++tile) {
    for (int k = 0; k < 2; ++k) {
      pair_at<F>(matrix, 16 * at.warp + at.g + 8 * k, 8 * tile + 2 * at.t) =
          pack_bf16(opaque(w[tile][2 * k]), w[tile][2 * k + 1]);
    }
  }
}

// --- products; c is the own columns of the result, over the lanes as C fragments ---

/// c += a b for the A fragment of a and, as load_transposed gives them, the B fragments of b.
__device__ __forceinline__ void multiply_add(Square& c, const Fragment& a, const Fragment& b_t) {
  for (int j = 0; j < 2; ++j) mma_m16n8k16(c[j], a, b_t[2 * j], b_t[2 * j + 1]);
}
/// c += a w for columns 16 i.. of a, where w^T is this warp's state.
template <int F>
__device__ __forceinline__ void add_times_state(Square& c, const Fragment& a, const StateTile<F>& w,
                                                int i) {
  for (int j = 0; j < 2; ++j) {
    const uint2 b = fused::operand(w, i, j);
    mma_m16n8k16(c[j], a, b.x, b.y);
  }
}
template <int F>
__device__ __forceinline__ void add_times_state(Square& c, const std::byte* a,
                                                const StateTile<F>& w, const Place<F>& at) {
#pragma unroll
  for (int i = 0; i < F / 16; ++i) {
    Fragment left;
    load_rows<F>(left, a, i, at.lane);
    add_times_state<F>(c, left, w, i);
  }
}
/// What a layer computes of its weights: z += x w, z_bar += x_bar w.
template <int F>
__device__ __forceinline__ void read_layer(Square& z, Square& z_bar, const std::byte* x,
                                           const std::byte* x_bar, const StateTile<F>& w,
                                           const Place<F>& at) {
#pragma unroll
  for (int i = 0; i < F / 16; ++i) {
    Fragment key, query;
    load_rows<F>(key, x, i, at.lane);
    load_rows<F>(query, x_bar, i, at.lane);
    add_times_state<F>(z, key, w, i);
    add_times_state<F>(z_bar, query, w, i);
  }
}
/// c += a m for a tile and a published [F x F] matrix.
template <int F>
__device__ __forceinline__ void add_times_matrix(Square& c, const std::byte* a, const std::byte* m,
                                                 const Place<F>& at) {
#pragma unroll
  for (int i = 0; i < F / 16; ++i) {
    Fragment left, right;
    load_rows<F>(left, a, i, at.lane);
    load_transposed<F>(right, m, at.warp, 16 * i, at.lane);
    multiply_add(c, left, right);
  }
}

// --- matrices of tokens by tokens: two warps of a slice make eight columns each, then all its warps read them ---

/// token_scale of this lane's two rows.
struct RowScales {
  float low, high;
  __device__ RowScales(const float* token_scale, int g)
      : low(token_scale[g]), high(token_scale[g + 8]) {}
  [[nodiscard]] __device__ float of(int i) const { return i < 2 ? low : high; }
};

constexpr int kScoreBytes = kTokens * kTokens * 2;
/// Of 16-byte chunk `chunk` (0, 1) of a row; eight rows at one chunk meet no bank conflict.
__device__ __forceinline__ int score_offset(int row, int chunk) {
  return 32 * row + 16 * (chunk ^ (row >> 2 & 1));
}
__device__ __forceinline__ void load_scores(Fragment& a, const std::byte* scores, int lane) {
  ldmatrix_x4(a, scores + score_offset(lane & 15, lane >> 4));
}
/// The A fragment of the transpose.
__device__ __forceinline__ void load_scores_transposed(Fragment& a, const std::byte* scores,
                                                       int lane) {
  ldmatrix_x4_transposed(a, scores + score_offset((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1));
}

/// Eight columns, a C fragment, of a matrix of tokens by tokens: those of this warp.
template <int F>
struct ScoreColumns {
  float x[4] = {};

  /// += a b^T for two tiles.
  __device__ void add_product(const std::byte* a, const std::byte* b, const Place<F>& at) {
#pragma unroll
    for (int i = 0; i < F / 32; ++i) {
      Fragment left, right;  // the right one serves two products
      ldmatrix_x4(right,
                  b + tile_offset<F>(8 * at.score_tile() + (at.lane & 7), at.lane >> 3) + 64 * i);
      for (int h = 0; h < 2; ++h) {
        load_rows<F>(left, a, 2 * i + h, at.lane);
        mma_m16n8k16(x, left, right[2 * h], right[2 * h + 1]);
      }
    }
  }
  /// Keeps M, the pairs with key <= query.
  __device__ void mask(const Place<F>& at) {
    for (int i = 0; i < 4; ++i) {
      const bool is_past = 8 * at.score_tile() + 2 * at.t + (i & 1) <= at.g + 8 * (i >> 1);
      x[i] = is_past ? x[i] : 0.0F;
    }
  }
  __device__ void store(std::byte* scores, const Place<F>& at) const {
    for (int k = 0; k < 2; ++k) {
      *reinterpret_cast<std::uint32_t*>(scores + score_offset(at.g + 8 * k, at.score_tile()) +
                                        4 * at.t) = pack_bf16(x[2 * k], x[2 * k + 1]);
    }
  }
};
/// M (x_bar x^T + one): the scores of a layer.
template <int F>
__device__ __forceinline__ ScoreColumns<F> causal_scores(const std::byte* x_bar, const std::byte* x,
                                                         float one, const Place<F>& at) {
  ScoreColumns<F> scores;
  scores.add_product(x_bar, x, at);
  for (float& score : scores.x) score += one;
  scores.mask(at);
  return scores;
}
/// -(M / l * (x_bar x^T + one)) to `to`: what multiplies l G in the read step.
template <int F>
__device__ __forceinline__ void store_read_weights(std::byte* to, ScoreColumns<F> scores,
                                                   const RowScales& scales, const Place<F>& at) {
  for (int i = 0; i < 4; ++i) scores.x[i] *= -scales.of(i);
  scores.store(to, at);
}

/// f(tile, i, row, column) for this thread's elements of a StateTile.
template <int F, typename Function>
__device__ __forceinline__ void for_each_state_element(const Place<F>& at, Function&& f) {
#pragma unroll
  for (int tile = 0; tile < F / 8; ++tile) {
    for (int i = 0; i < 4; ++i) f(tile, i, at.g + 8 * (i >> 1), 8 * tile + 2 * at.t + (i & 1));
  }
}

/// c = such entries at the own columns, for every token.
template <int F>
__device__ __forceinline__ void start_with(Square& c, const float* first, const Place<F>& at) {
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) c[j][i] = first[8 * j + 2 * at.t + (i & 1)];
  }
}
/// Entries in shared memory, `first` that of own column 0, += scale times the sums over tokens; `x_t` best as
/// load_transposed_left gives it.
template <int F>
__device__ __forceinline__ void add_row_sums(float* first, const Fragment& x_t, float scale,
                                             const Place<F>& at) {
  constexpr std::uint32_t kOnes = 0x3f803f80U;
  const Fragment a = {x_t[0], x_t[2], x_t[1], x_t[3]};
  float sum[4] = {};  // of rows g and g + 8 of the transpose, in every column
  mma_m16n8k16(sum, a, kOnes, kOnes);
  if (at.t != 0) return;
  for (int k = 0; k < 2; ++k) first[at.g + 8 * k] += scale * sum[2 * k];
}

// --- exchange between slices: partial sums [slice][token that the receiver owns][F] in fp32, words of rows ---

/// Floats from one row of partial sums to the next: four rows of C fragments meet no bank conflict.
template <int F>
constexpr int kPartialStride = F + 8;

/// Bytes that a block of a cluster gets: of a sum's partial sums, of all rows of a tile.
template <int F>
constexpr int kPartialsMail = kSlices* kOwnedTokens* F * 4;
template <int F>
constexpr int kRowsMail = kTokens* F * 2;
/// Waits for `bytes` bytes, the mailbox's `phase`-th mail. Only those are ordered before what follows, nothing else that
/// other warps have written.
__device__ __forceinline__ void receive(Mailbox* box, int phase, int bytes) {
  if (threadIdx.x == 0) expect_bytes(box, bytes);
  wait_for_mail(box, phase & 1);
  __syncwarp();  // its lanes need not have seen it at once
}

/// This slice's part of a sum, at its own columns, goes to the warps that own the tokens.
template <int F, bool kCluster>
__device__ __forceinline__ void send(float* partial, const Square& c, const Place<F>& at,
                                     Mailbox* box) {
  for (int j = 0; j < 2; ++j) {
    const int column = at.first_output() + 8 * j + 2 * at.t;
    for (int k = 0; k < 2; ++k) {
      const int token = at.g + 8 * k;
      if constexpr (kCluster) {
        const int row = at.slice * kOwnedTokens + token % kOwnedTokens;
        send_in_cluster(partial + row * kPartialStride<F> + column, token / kOwnedTokens,
                        c[j][2 * k], c[j][2 * k + 1], box);
      } else {
        const int row = at.slice * kTokens + token;
        *reinterpret_cast<float2*>(partial + row * kPartialStride<F> + column) =
            make_float2(c[j][2 * k], c[j][2 * k + 1]);
      }
    }
  }
}
/// A word of a row that this warp owns goes to all slices.
template <bool kCluster>
__device__ __forceinline__ void send_to_all(std::uint32_t& word, std::uint32_t value,
                                            Mailbox* box) {
  if constexpr (kCluster) {
    for (int rank = 0; rank < kSlices; ++rank) send_in_cluster(&word, rank, value, box);
  } else {
    word = value;
  }
}

}  // namespace ttt::kernels::cuda::mlp
