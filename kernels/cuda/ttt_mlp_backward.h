#pragma once
// The fused backward of TTT-MLP on one pair: a cluster of four blocks, a slice each; ttt_mlp.h tells how a pair lies on
// them. The derivation is docs/numerics.md, "TTT"; d_x is dL/dx, and g1, g2 are l G1, l G2 as forward saved them.
//
// The mini-batches are walked from the last to the first. Their starts are restored, not stored: W1 = W1' + c_r k^T g1,
// then X2 = phi(k W1 + b1), then W2 = W2' + c_r X2^T g2, in fp32 from the operands that forward used. W1 and W2 are in
// registers; their gradients lie in shared memory in fp32, so that a warp reads its rows and, for the product with the
// transpose, its columns without bank conflicts.
//
// What a block has, of 65536 registers and 228 KiB a multiprocessor. Head dim 64: 128 threads of 255 registers, 64 of them
// W, and 112 KiB, 32 of them gradients: two blocks a multiprocessor. Head dim 96: 192 threads of 255 registers, 96 of them
// W, and 196 KiB, 72 of them gradients: one block.
//
// One mini-batch; between its phases a barrier of the block, or the cluster's mail, which orders nothing but itself:
//   restore_hidden       W1, b1; Z1, X2 and their likes at the outputs                             barrier
//   restore_output       W2, b2; Z2, Z2' to the tokens' owners                                     mail
//   output_rows          owners: d_Z2' from d_out, to all                                          mail
//   hidden_gradients     d_Z1'; d_g1 and through it d_u (u = g2 W2^T) and d_Z1; d_X2, in part      barrier
//   send_step_gradient   d_g2 to the owners                                                        mail
//   inner_rows           owners: d_Z2, to all; d_v, d_token_lr                                     mail
//   state_gradients      d_Z1; d_W2                                                                barrier
//   hidden_state_gradients  d_W1, d_b1, d_b2                                                       barrier
//   send_input_gradients d_q, d_k to the owners                                                    mail
//   input_rows           owners: d_q, d_k                                                          barrier
// A place that mail goes to has been read when its senders are at it: they have got the mail that the readers sent later.
// The next mini-batch's tiles arrive meanwhile.

#include "kernels/cuda/ttt_mlp.h"
#include "kernels/cuda/ttt_mlp_rows.h"

namespace ttt::kernels::cuda::mlp {

// --- products with the gradients of the state ---

/// Turns of a product's loop that are laid out at once: with head dim 96 registers are short. Even, so that which of the
/// groups below an index takes is a constant.
template <int F>
constexpr int kUnrolled = F == 64 ? 4 : 2;

/// The place of an element of an fp32 matrix with rows of F: eight columns stay together, and the four such groups of 32
/// columns trade places from row to row. Pairs in the order of C fragments and single elements in the order of the
/// transpose's B fragments both meet no bank conflict.
template <int F>
__device__ __forceinline__ int wide_index(int row, int column) {
  static_assert(F % 32 == 0);
  return row * F + (column ^ (((row ^ (row >> 2)) & 3) << 3));
}
/// Such a matrix as a thread sees it: where its elements would lie for each of the four places of a group, so that all
/// else of an index is a constant.
template <int F>
struct WideRows {
  float* group[4];

  __device__ WideRows(float* matrix, const Place<F>& at) {
    float* const first = matrix + (16 * at.warp + at.g) * F + 2 * at.t;
    for (int x = 0; x < 4; ++x) group[x] = first + 8 * (x ^ (at.g & 3) ^ (at.g >> 2));
  }
  /// wide_index(own row 8 j + g, column 8 tile + 2 t)
  [[nodiscard]] __device__ float2& pair(int j, int tile) const {
    return *reinterpret_cast<float2*>(group[(tile & 3) ^ (2 * j)] + 8 * j * F + 32 * (tile >> 2));
  }
};
template <int F>
struct WideColumns {
  const float* group[4];

  __device__ WideColumns(const float* matrix, const Place<F>& at) {
    const float* const first = matrix + 2 * at.t * F + 32 * (at.warp >> 1) + at.g;
    const int swap = 2 * (at.warp & 1) ^ 2 * (at.t & 1) ^ (at.t >> 1);
    for (int x = 0; x < 4; ++x) group[x] = first + 8 * (x ^ swap);
  }
  /// wide_index(row 8 tile + 2 t + e, own column 8 j + g)
  [[nodiscard]] __device__ float element(int tile, int e, int j) const {
    return group[(2 * (tile & 1)) ^ e ^ j][(8 * tile + e) * F];
  }
};

/// c += a m^T for the own rows of an fp32 [F x F] matrix.
template <int F>
__device__ __forceinline__ void add_times_wide_rows(Square& c, const std::byte* a, float* m,
                                                    const Place<F>& at) {
  const WideRows<F> rows(m, at);
#pragma unroll(kUnrolled <F>)
  for (int i = 0; i < F / 16; ++i) {
    Fragment left;
    load_rows<F>(left, a, i, at.lane);
    for (int j = 0; j < 2; ++j) {
      const float2 near = rows.pair(j, 2 * i);
      const float2 far = rows.pair(j, 2 * i + 1);
      mma_m16n8k16(c[j], left, pack_bf16(near.x, near.y), pack_bf16(far.x, far.y));
    }
  }
}
/// c += a m for the own columns of an fp32 [F x F] matrix.
template <int F>
__device__ __forceinline__ void add_times_wide_columns(Square& c, const std::byte* a,
                                                       const float* m, const Place<F>& at) {
  const WideColumns<F> columns(m, at);
#pragma unroll(kUnrolled <F>)
  for (int i = 0; i < F / 16; ++i) {
    Fragment left;
    load_rows<F>(left, a, i, at.lane);
    for (int j = 0; j < 2; ++j) {
      const auto pair = [&](int tile) {
        return pack_bf16(columns.element(tile, 0, j), columns.element(tile, 1, j));
      };
      mma_m16n8k16(c[j], left, pair(2 * i), pair(2 * i + 1));
    }
  }
}
/// sum += a tile for columns 16 part.. of a tile; `a_t` are the transposed blocks of [16 tokens x 16 own].
template <int F>
__device__ __forceinline__ void add_outer(Square& sum, const Fragment& a_t, const std::byte* tile,
                                          int part, const Place<F>& at) {
  const Fragment a = {a_t[0], a_t[2], a_t[1], a_t[3]};
  Fragment b;
  load_transposed<F>(b, tile, part, 0, at.lane);
  multiply_add(sum, a, b);
}
/// m += sum at the own rows, columns 16 part..
template <int F>
__device__ __forceinline__ void add_to_wide(const WideRows<F>& m, const Square& sum, int part) {
  for (int j = 0; j < 2; ++j) {
    for (int k = 0; k < 2; ++k) {
      float2& to = m.pair(k, 2 * part + j);
      to = make_float2(to.x + sum[j][2 * k], to.y + sum[j][2 * k + 1]);
    }
  }
}

struct BackwardArguments {
  Inputs in;
  const BFloat16 *d_out, *step_gradients, *hidden_step_gradients;
  StatePointers checkpoint, d_final, d_initial;
  BFloat16 *d_q, *d_k, *d_v;
  float* d_token_lr;
  float* partials;  // [pairs, slices, 16 + F + F]: fused::add_partials
};

/// What an owner's lane keeps: in shared memory, since W fills the registers, and no other thread's.
template <int F>
struct OwnedRow {
  LaneRow<F> d_weight, d_bias;  // sums over the mini-batches
  InnerLossRow<F> loss;         // of this mini-batch's token, from output_rows to inner_rows
  std::uint32_t d_out[kLanePairs<F>];
  LaneRow<F> d_e;
};

template <int F>
struct BackwardLayout {
  static constexpr int kTileBytes = Layout<F>::kTileBytes;
  static constexpr int kStages = 2;
  static constexpr int kStageBytes = 6 * kTileBytes + Layout<F>::kRateBytes;
  static constexpr int kWideBytes = F * F * 4;
  static constexpr int kPartialBytes = kTokens * kPartialStride<F> * 4;
  // Byte offsets.
  static constexpr int kDW1 = kStages * kStageBytes;
  static constexpr int kDW2 = kDW1 + kWideBytes;
  static constexpr int kMatrix = kDW2 + kWideBytes;  // W2, from hidden_state_gradients on W1
  static constexpr int kX2 = kMatrix + F * Layout<F>::kRowBytes;
  static constexpr int kX2Bar = kX2 + kTileBytes;
  static constexpr int kDZ1Bar = kX2Bar + kTileBytes;
  static constexpr int kDU = kDZ1Bar + kTileBytes;  // from hidden_state_gradients on d_Z1
  // Partial sums for the tokens that this block owns. Who is ahead writes those of Z2 and Z2' while others still read
  // those of d_q and d_k.
  static constexpr int kZ2 = kDU + kTileBytes;  // also of d_g2
  static constexpr int kZ2Bar = kZ2 + kPartialBytes;
  static constexpr int kDQ = kZ2Bar + kPartialBytes;
  static constexpr int kDK = kDQ + kPartialBytes;
  static constexpr int kOwned = kDK + kPartialBytes;
  static constexpr int kB1 = kOwned + kOwnedTokens * 32 * static_cast<int>(sizeof(OwnedRow<F>));
  static constexpr int kDB1 = kB1 + F * 4;
  static constexpr int kB2 = kDB1 + F * 4;
  static constexpr int kDB2 = kB2 + F * 4;
  static constexpr int kGamma = kDB2 + F * 4;
  static constexpr int kBeta = kGamma + F * 4;
  // Each thread's own fragments of phi'(Z1), phi''(Z1) and phi'(Z1'). In registers they, or what they are computed from,
  // would lie beside the second layer's products, where registers are fewest.
  static constexpr int kFragmentBytes = Layout<F>::kThreads * 16;
  static constexpr int kSlope = kBeta + F * 4;
  static constexpr int kBend = kSlope + kFragmentBytes;
  static constexpr int kSlopeBar = kBend + kFragmentBytes;
  // Matrices of tokens by tokens: what multiplies g1 and g2 in the read step, and the gradient of the scores, of one layer
  // after the other; then the masked scores of both layers, as the lanes of the warps that made them hold them.
  static constexpr int kReadWeights = kSlopeBar + kFragmentBytes;
  static constexpr int kDScores = kReadWeights + 2 * kScoreBytes;
  static constexpr int kScores = kDScores + kScoreBytes;
  static constexpr int kMeanSquare = kScores + 2 * kScoreBytes;  // of gamma
  static constexpr int kMail = kMeanSquare + 16;
  static constexpr int kBytes = kMail + 48;
  static_assert(kSlope % 16 == 0);
  static_assert((F == 64 ? 2 : 1) * (kBytes + 1024) <= 228 * 1024);
};

/// A block's mailboxes, one an exchange.
enum BackwardMail { kOutputSums, kOutputRows, kStepSums, kInnerRows, kInputSums, kMailboxes };

/// A mini-batch's inputs in shared memory.
struct BackwardStage {
  std::byte *k, *q;
  std::byte* v;      // row by row replaced by d_Z2
  std::byte* d_out;  // row by row replaced by d_Z2'
  std::byte *g2, *g1;
  float* rates;
};

/// One thread's part of a pair.
template <int F>
struct Backward {
  using L = BackwardLayout<F>;

  const BackwardArguments& arguments;
  const Inputs& in;
  std::byte* const shared;
  Place<F> at;
  const int pair;
  const PairRows rows;
  int m = 0;      // mini-batch
  int phase = 0;  // of the mailboxes: mini-batches done
  // State and sums over the mini-batches.
  StateTile<F> w1, w2;
  float d_scale[2] = {};   // of this lane's two rows, in the warps that make scores
  float d_step = 0;        // this lane's part of dL/dc_r by way of the state's step,
  float d_short_step = 0;  // and of a short last mini-batch
  // From one phase to the next.
  Fragment d_z1;
  Square d_k;

  __device__ Backward(const BackwardArguments& all, std::byte* shared_bytes)
      : arguments(all),
        in(all.in),
        shared(shared_bytes),
        at(cluster_rank()),
        pair(static_cast<int>(blockIdx.x) / kSlices),
        rows(fused::rows_of_pair(static_cast<unsigned>(pair), in)) {}

  /// Addresses of one phase are not kept for the next one.
  __device__ void begin_phase() { at = Place<F>(cluster_rank()); }

  __device__ BackwardStage stage() const {
    std::byte* const tiles = shared + m % L::kStages * L::kStageBytes;
    const auto tile = [&](int i) { return tiles + i * L::kTileBytes; };
    return {
        tile(0), tile(1), tile(2), tile(3), tile(4), tile(5), reinterpret_cast<float*>(tile(6))};
  }
  /// The scale of the state's step: that of the mini-batch's last token.
  __device__ float step_scale() const { return in.token_scale[rows.count(m) - 1]; }
  __device__ std::byte* tile(int offset) const { return shared + offset; }
  __device__ std::byte* matrix() const { return shared + L::kMatrix; }
  __device__ Mailbox* mail(BackwardMail which) const {
    return reinterpret_cast<Mailbox*>(shared + L::kMail) + which;
  }
  __device__ float* floats(int offset) const { return reinterpret_cast<float*>(shared + offset); }
  __device__ OwnedRow<F>& owned() const {
    return reinterpret_cast<OwnedRow<F>*>(shared + L::kOwned)[32 * at.warp + at.lane];
  }
  __device__ std::byte* read_weights(int layer) const {
    return tile(L::kReadWeights + layer * kScoreBytes);
  }
  /// The "+1" of a layer's scores; those of the second are summed over slices.
  __device__ float one(int layer) const { return layer == 0 || at.slice == 0 ? 1.0F : 0.0F; }
  /// Where the owner's row lies in tensors [B, T, H, F].
  __device__ bool has_token() const { return at.owns_token() && at.token() < rows.count(m); }
  __device__ std::int64_t owned_row() const { return rows.row(m * kTokens + at.token()); }

  /// Of the tokens' scores in a layer that two warps make for the slice's.
  __device__ void make_scores(int layer, const std::byte* x_bar, const std::byte* x) const;
  __device__ void make_score_gradients(int layer, const std::byte* d_z_bar, const std::byte* g);
  __device__ uint2& own_scores(int layer) const {
    return reinterpret_cast<uint2*>(shared +
                                    L::kScores)[64 * layer + 32 * at.score_tile() + at.lane];
  }
  /// A bias or its gradient, where `offset` is, += scale times the sums over tokens at the own columns.
  __device__ void add_column_sums(int offset, const Fragment& x_t, float scale) const {
    add_row_sums(floats(offset) + 16 * at.warp, x_t, scale, at);
  }
  /// A product at the own columns begins with a bias.
  __device__ void start_with_bias(Square& c, int offset) const {
    start_with(c, floats(offset) + 16 * at.warp, at);
  }
  /// f(index in W1, index in W2, place) for this thread's rows of d_W1 and d_W2; indices from this warp's first element.
  template <typename Function>
  __device__ void for_each_own_gradient(Function&& f) const {
#pragma unroll 1
    for (int i = 0; i < F / 2; ++i) {
      const int row = at.g + 8 * (i & 1);
      const int column = 4 * (i >> 1) + at.t;
      f(column * kHidden<F> + row, column * F + row, wide_index<F>(16 * at.warp + row, column));
    }
  }
  __device__ std::int64_t first_w1() const {
    return std::int64_t{pair} * F * kHidden<F> + at.first_hidden();
  }
  __device__ std::int64_t first_w2() const {
    return (std::int64_t{pair} * kHidden<F> + at.slice * F) * F + at.first_output();
  }

  __device__ void load_stage() const;
  __device__ void load_state();
  __device__ void store_state() const;
  __device__ void restore_hidden(const BackwardStage& s);
  __device__ void restore_output(const BackwardStage& s);
  __device__ void output_rows(const BackwardStage& s);
  __device__ void hidden_gradients(const BackwardStage& s);
  __device__ void through_hidden_step(const BackwardStage& s, const Fragment& packed_d_z1_bar,
                                      const Fragment& bend);
  __device__ void send_step_gradient(const BackwardStage& s);
  __device__ void inner_rows(const BackwardStage& s);
  __device__ void state_gradients(const BackwardStage& s);
  __device__ void hidden_state_gradients(const BackwardStage& s);
  __device__ void send_input_gradients(const BackwardStage& s);
  __device__ void input_rows() const;
  __device__ void store_sums();
  __device__ void run();
};

}  // namespace ttt::kernels::cuda::mlp
