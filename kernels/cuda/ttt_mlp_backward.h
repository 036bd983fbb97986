#pragma once
// The fused backward of TTT-MLP on one pair: 16 warps of one block; ttt_mlp.h tells how a pair lies on them. The
// derivation is docs/numerics.md, "TTT"; d_x is dL/dx, and g1, g2 are l G1, l G2 as forward saved them.
//
// The mini-batches are walked from the last to the first. Their starts are restored, not stored: W1 = W1' + c_r k^T g1,
// then X2 = phi(k W1 + b1), then W2 = W2' + c_r X2^T g2, in fp32 from the operands that forward used. W1 and W2 are in
// registers; their gradients fill shared memory in fp32, laid out so that a warp reads its rows and, for the product
// with the transpose, its columns without bank conflicts.
//
// One mini-batch, with the barriers between its phases (slice or pair):
//   restore_hidden       W1, b1; Z1, X2 and their likes at the outputs                             slice
//   restore_output       W2, b2; Z2, Z2' to the tokens' owners                                     pair
//   output_rows          owners: d_Z2' from d_out                                                  pair
//   hidden_gradients     d_Z1'; d_g1 and through it d_u (u = g2 W2^T) and d_Z1; d_X2, in part      slice
//   send_step_gradient   d_g2 to the owners                                                        pair
//   inner_rows           owners: d_Z2, d_v, d_token_lr                                             pair
//   state_gradients      d_Z1; d_W2, d_b2                                                          slice
//   hidden_state_gradients  d_W1, d_b1                                                             slice
//   send_input_gradients d_q, d_k to the owners                                                    pair
//   input_rows           owners: d_q, d_k
// Shared memory is full, so areas have several tenants; BackwardLayout says which.

#include "kernels/cuda/ttt_mlp.h"
#include "kernels/cuda/ttt_mlp_rows.h"

namespace ttt::kernels::cuda::mlp {

// --- products with the gradients of the state ---

/// c += a m^T for rows 16 quarter.. of an fp32 [64 x 64] matrix: this warp's own.
__device__ __forceinline__ void add_times_wide_rows(Square& c, const std::byte* a, const float* m,
                                                    const Place& at) {
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    Fragment left;
    load_fragment(left, a, part, at);
    for (int j = 0; j < 2; ++j) {
      const int row = 16 * at.quarter + 8 * j + at.g;
      const int column = 16 * part + 2 * at.t;
      const float2 near = *reinterpret_cast<const float2*>(m + wide_index(row, column));
      const float2 far = *reinterpret_cast<const float2*>(m + wide_index(row, column + 8));
      mma_m16n8k16(c[j], left, pack_bf16(near.x, near.y), pack_bf16(far.x, far.y));
    }
  }
}
/// c += a m for columns 16 quarter.. of an fp32 [64 x 64] matrix.
__device__ __forceinline__ void add_times_wide_columns(Square& c, const std::byte* a,
                                                       const float* m, const Place& at) {
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    Fragment left;
    load_fragment(left, a, part, at);
    for (int j = 0; j < 2; ++j) {
      const int column = 16 * at.quarter + 8 * j + at.g;
      const int row = 16 * part + 2 * at.t;
      mma_m16n8k16(c[j], left,
                   pack_bf16(m[wide_index(row, column)], m[wide_index(row + 1, column)]),
                   pack_bf16(m[wide_index(row + 8, column)], m[wide_index(row + 9, column)]));
    }
  }
}
/// sum += a tile for columns 16 part.. of a tile; `a` is [16 own x 16 tokens].
__device__ __forceinline__ void add_outer(Square& sum, const Fragment& a, const std::byte* tile,
                                          int part, const Place& at) {
  Fragment b;
  load_transposed(b, tile, part, at);
  mma_m16n8k16(sum[0], a, b[0], b[1]);
  mma_m16n8k16(sum[1], a, b[2], b[3]);
}
/// m += sum at rows 16 quarter.., columns 16 part..
__device__ __forceinline__ void add_to_wide(float* m, const Square& sum, int part,
                                            const Place& at) {
  for (int j = 0; j < 2; ++j) {
    for (int k = 0; k < 2; ++k) {
      const int row = 16 * at.quarter + at.g + 8 * k;
      auto* const to = reinterpret_cast<float2*>(m + wide_index(row, 16 * part + 8 * j + 2 * at.t));
      const float2 old = *to;
      *to = make_float2(old.x + sum[j][2 * k], old.y + sum[j][2 * k + 1]);
    }
  }
}

struct BackwardArguments {
  Inputs inputs;
  const BFloat16 *d_out, *step_gradients, *hidden_step_gradients;
  StatePointers checkpoint, d_final, d_initial;
  BFloat16 *d_q, *d_k, *d_v;
  float* d_token_lr;
  float* d_token_scale;  // [pairs, 16]
  float* d_norm;         // [pairs, 2, 64]: of weight and bias
};

struct BackwardLayout {
  static constexpr int kThreads = kSlices * kSliceThreads;
  static constexpr int kWideBytes = kFeatures * kFeatures * 4;  // a slice's W1 or W2 in fp32
  static constexpr int kMatrixBytes = kFeatures * kFeatures * 2;
  static constexpr int kPartialBytes = kTokens * kFeatures * 4;
  // Byte offsets.
  static constexpr int kDW1 = 0;
  static constexpr int kDW2 = kDW1 + kSlices * kWideBytes;
  static constexpr int kMatrix = kDW2 + kSlices * kWideBytes;  // W2, from state_gradients on W1
  static constexpr int kStage = kMatrix + kSlices * kMatrixBytes;
  static constexpr int kK = kStage;
  static constexpr int kQ = kK + kTileBytes;
  static constexpr int kV = kQ + kTileBytes;     // row by row replaced by d_Z2
  static constexpr int kDOut = kV + kTileBytes;  // row by row replaced by d_Z2'
  static constexpr int kG2 = kDOut + kTileBytes;
  static constexpr int kG1 = kG2 + kTileBytes;  // a tile a slice
  static constexpr int kRates = kG1 + kSlices * kTileBytes;
  // Each slice's own area.
  static constexpr int kSlice = kRates + 128;
  // This and the next: at the end the slice's part of d_k.
  static constexpr int kX2 = 0;
  static constexpr int kX2Bar = kX2 + kTileBytes;
  // This and the next: at first the slice's part of Z2'.
  static constexpr int kDZ1Bar = kX2Bar + kTileBytes;
  static constexpr int kDU = kDZ1Bar + kTileBytes;   // from hidden_state_gradients on d_Z1
  static constexpr int kPartial = kDU + kTileBytes;  // of Z2, d_g2, d_q in turn
  static constexpr int kSliceBytes = kPartial + kPartialBytes;
  static constexpr int kB2 = kSlice + kSlices * kSliceBytes;
  static constexpr int kDB2 = kB2 + kFeatures * 4;
  static constexpr int kShortSteps = kDB2 + kFeatures * 4;  // d_step of a short mini-batch, by warp
  static constexpr int kLoss = kShortSteps + 16 * 4;  // three means of every token's inner loss
  static constexpr int kBytes = kLoss + 16 * 3 * 4;
  static_assert(kBytes <= 227 * 1024);
};

/// One thread's part of a pair.
struct Backward {
  using Layout = BackwardLayout;

  const BackwardArguments& arguments;
  const Inputs& in;
  std::byte* const shared;
  Place at;
  const Pair pair;
  int begin = 0;  // the mini-batch's first token
  // State and sums over the mini-batches.
  StateTile w1, w2;  // transposed
  float biases;      // of the warp's 16 hidden units: b1's entry c in lane c, d_b1's in lane 16 + c
  float d_scale[2] = {};  // of this lane's two rows, in the first warp of each slice
  float d_step = 0;       // this lane's part of dL/dc_r by way of the state's step
  float d_weight[2] = {}, d_bias[2] = {};  // of the owner's features
  // From one phase to the next: hidden units.
  Fragment slope, bend, slope_bar;  // phi'(Z1), phi''(Z1), phi'(Z1')
  Fragment read1;                   // -(M / l * (scores + 1)) of the first layer
  Fragment d_z1;
  Square d_k;
  // and the owner's token.
  float n[2];
  std::uint32_t d_out;
  float d_e[2];

  __device__ Backward(const BackwardArguments& all, std::byte* shared_bytes)
      : arguments(all), in(all.inputs), shared(shared_bytes), at(-1), pair(blockIdx.x, in) {}

  /// Addresses of one phase are not kept for the next one.
  __device__ void begin_phase() { at = Place(-1); }

  __device__ int count() const {
    return in.num_tokens - begin < kTokens ? in.num_tokens - begin : kTokens;
  }
  /// The scale of the state's step: that of the mini-batch's last token.
  __device__ float step_scale() const { return in.token_scale[count() - 1]; }
  __device__ std::byte* tile(int offset) const { return shared + offset; }
  __device__ std::byte* slice_tile(int offset) const {
    return shared + Layout::kSlice + at.slice * Layout::kSliceBytes + offset;
  }
  __device__ std::byte* g1_tile() const { return shared + Layout::kG1 + at.slice * kTileBytes; }
  __device__ std::byte* matrix() const {
    return shared + Layout::kMatrix + at.slice * Layout::kMatrixBytes;
  }
  __device__ float* floats(int offset) const { return reinterpret_cast<float*>(shared + offset); }
  __device__ float* wide(int offset) const {
    return floats(offset + at.slice * Layout::kWideBytes);
  }
  /// The "+1" of scores that are summed over slices.
  __device__ float one() const { return at.slice == 0 ? 1.0F : 0.0F; }

  /// b2 or d_b2 += scale times the sums over tokens; `b` are B fragments of this warp's 16 outputs.
  __device__ void add_column_sums(int offset, const Fragment& b, float scale) const {
    float sums[2][2];
    sum_over_tokens(sums, b);
    if (at.g != 0) return;
    for_each_bias(at, [&](int j, int e, int column) {
      floats(offset)[at.first_output() + column] += scale * sums[j][e];
    });
  }
  /// Starts a product over columns with a bias: `first` is 0 for b1, 16 for d_b1.
  __device__ void fill_with_bias(Square& c, int first) const {
    for (int j = 0; j < 2; ++j) {
      for (int i = 0; i < 4; ++i) {
        const int lane = first + 8 * j + 2 * at.t + (i & 1);
        c[j][i] = __shfl_sync(kAllLanes, biases, lane);
      }
    }
  }
  /// The column sums that `sum_over_tokens` left, at the lanes where `biases` has these columns.
  __device__ float at_bias_lane(const float (&sums)[2][2]) const {
    float own = 0;
    for (int j = 0; j < 2; ++j) {
      for (int e = 0; e < 2; ++e) {
        const float sum = __shfl_sync(kAllLanes, sums[j][e], (at.lane & 7) >> 1);
        if ((at.lane & 15) >> 3 == j && (at.lane & 1) == e) own = sum;
      }
    }
    return own;
  }
  /// This slice's part of a sum goes to the tokens' owners.
  __device__ void send(int offset, const Square& c) const {
    auto* const to = reinterpret_cast<float*>(slice_tile(offset));
    for (int j = 0; j < 2; ++j) {
      for (int k = 0; k < 2; ++k) {
        const int index = wide_index(at.g + 8 * k, at.first_output() + 8 * j + 2 * at.t);
        *reinterpret_cast<float2*>(to + index) = make_float2(c[j][2 * k], c[j][2 * k + 1]);
      }
    }
  }
  /// Adds the slices' parts for this warp's token, in order.
  __device__ void add_partials(float (&z)[2], int offset) const {
    for (int slice = 0; slice < kSlices; ++slice) {
      const int first = Layout::kSlice + slice * Layout::kSliceBytes + offset;
      const float* const from = floats(first) + wide_index(at.token, 2 * at.lane);
      z[0] += from[0];
      z[1] += from[1];
    }
  }
  /// f(index in W1, index in W2, place) for this thread's rows of d_W1 and d_W2; indices from this warp's first element.
  template <typename F>
  __device__ void for_each_own_gradient(F&& f) const {
#pragma unroll 1
    for (int i = 0; i < 32; ++i) {
      const int row = at.g + 8 * (i >> 4);
      const int column = 4 * (i & 15) + at.t;
      f(column * kHidden + row, column * kFeatures + row,
        wide_index(16 * at.quarter + row, column));
    }
  }
  /// Where the owner's pair of features lies in tensors [B, T, H, F].
  __device__ std::int64_t owned_row() const { return pair.row(begin + at.token) + 2 * at.lane; }

  __device__ void load_stage() const;
  __device__ void load_state();
  __device__ void store_state() const;
  __device__ void restore_hidden();
  __device__ void restore_output();
  __device__ void output_rows();
  __device__ void hidden_gradients();
  __device__ void through_hidden_step(const Fragment& packed_d_z1_bar);
  __device__ void send_step_gradient();
  __device__ void inner_rows();
  __device__ void state_gradients();
  __device__ void hidden_state_gradients();
  __device__ void send_input_gradients();
  __device__ void input_rows(std::int64_t row, bool is_token) const;
  __device__ void store_sums();
  __device__ void run();
};

}  // namespace ttt::kernels::cuda::mlp
