#pragma once
// The fused forward of TTT-MLP on one pair; ttt_mlp.h tells how a pair lies on the warps.
//
// One mini-batch, with the barriers between its phases (slice: the four warps of a slice; pair: all of a pair's warps):
//   hidden_layer        Z1 = k W1 + b1, Z1' without the step; X2 = phi(Z1)                      slice
//   send_output         Z2's partial sums over the slice to the tokens' owners                  pair
//   finish_tokens       owners: out of the previous mini-batch; l G2 of this one to everyone    pair
//   step_hidden         l G1 = (l G2 W2^T) phi'(Z1); X2' = phi(Z1'); W1 and b1 take their step  slice
//   read_and_step       Z2's partial sums at X2' to the owners; W2 and b2 take their step
// In a cluster the exchanges go through distributed shared memory; sums have the same order, so bits are the same.

#include "kernels/cuda/ttt_mlp.h"
#include "kernels/cuda/ttt_mlp_rows.h"

namespace ttt::kernels::cuda::mlp {

struct ForwardArguments {
  Inputs inputs;
  StatePointers initial, final_state, checkpoint;
  BFloat16 *out, *step_gradients, *hidden_step_gradients;  // the last two null when not saved
};

template <bool kCluster>
struct ForwardLayout {
  static constexpr int kLocalSlices = kCluster ? 1 : kSlices;
  static constexpr int kOwnedTokens =
      kCluster ? kTokens / kSlices : kTokens;  // by this block's warps
  static constexpr int kThreads = kLocalSlices * kSliceThreads;
  static constexpr int kStages = 3;
  static constexpr int kStageBytes = 3 * kTileBytes + 128;  // k, q, v, token_lr
  static constexpr int kPartialBytes = kSlices * kOwnedTokens * kFeatures * 4;
  // Byte offsets. X2 has two buffers: the next mini-batch's is written while slower warps still read this one's.
  static constexpr int kX2 = kStages * kStageBytes;
  static constexpr int kX2Bar = kX2 + 2 * kLocalSlices * kTileBytes;
  static constexpr int kG2 = kX2Bar + kLocalSlices * kTileBytes;
  static constexpr int kW2 = kG2 + kTileBytes;
  static constexpr int kZ2 = kW2 + kLocalSlices * kFeatures * kFeatures * 2;
  static constexpr int kZ2Bar = kZ2 + kPartialBytes;
  static constexpr int kB2 = kZ2Bar + kPartialBytes;
  static constexpr int kRowMeans = kB2 + kFeatures * 4;  // of the initial W2
  static constexpr int kB2Mean = kRowMeans + kLocalSlices * kFeatures * 4;
  static constexpr int kBytes = kB2Mean + 16;
};

/// A mini-batch's inputs in shared memory.
struct ForwardStage {
  std::byte *k, *q, *v;
  const float* rates;
  int begin;  // its first token
  int count;  // of tokens, fewer than 16 in the last one
};

/// One thread's part of a pair.
template <bool kCluster>
struct Forward {
  using Layout = ForwardLayout<kCluster>;

  const ForwardArguments& arguments;
  const Inputs& in;
  std::byte* const shared;
  Place at;
  const Pair pair;
  const float mean_square;  // of gamma
  StateTile w1, w2;         // transposed
  float b1[2][2];
  // From one phase to the next.
  Square z1_bar;
  Fragment slope, weights;
  std::uint32_t previous_q = 0;  // of the row whose output is still to be written

  __device__ Forward(const ForwardArguments& all, std::byte* shared_bytes)
      : arguments(all),
        in(all.inputs),
        shared(shared_bytes),
        at(place()),
        pair(kCluster ? blockIdx.x / kSlices : blockIdx.x, in),
        mean_square(LaneNorm(in, pair.head, at).mean_square()) {}

  __device__ static Place place() { return Place(kCluster ? cluster_rank() : -1); }
  /// Addresses of one phase are not kept for the next one.
  __device__ void begin_phase() { at = place(); }
  __device__ static void pair_barrier() {
    if constexpr (kCluster) {
      cluster_barrier();
    } else {
      __syncthreads();
    }
  }

  __device__ std::byte* slice_tile(int offset) const {
    return shared + offset + at.local_slice * kTileBytes;
  }
  __device__ std::byte* x2_tile(int mini_batch) const {
    const int buffer = mini_batch & 1;
    return slice_tile(Layout::kX2 + buffer * Layout::kLocalSlices * kTileBytes);
  }
  __device__ std::byte* w2_matrix() const {
    return shared + Layout::kW2 + at.local_slice * kFeatures * kFeatures * 2;
  }
  __device__ float* floats(int offset) const { return reinterpret_cast<float*>(shared + offset); }

  __device__ ForwardStage stage(int mini_batch) const {
    std::byte* const bytes = shared + mini_batch % Layout::kStages * Layout::kStageBytes;
    const int begin = mini_batch * kTokens;
    const int left = in.num_tokens - begin;
    return {bytes,
            bytes + kTileBytes,
            bytes + 2 * kTileBytes,
            reinterpret_cast<const float*>(bytes + 3 * kTileBytes),
            begin,
            left < kTokens ? left : kTokens};
  }

  /// Queues the copies; beyond the sequence an empty group, so that every mini-batch is one group.
  __device__ void load_stage(int mini_batch) const {
    if (mini_batch * kTokens < in.num_tokens) {
      const ForwardStage s = stage(mini_batch);
      const std::int64_t row = pair.row(s.begin);
      const int thread = static_cast<int>(threadIdx.x);
      const int copier = thread % kSliceThreads;
      // With four slices, each of the first three loads one tensor and the last one the rates.
      if (kCluster || at.slice == 0) load_tile(s.k, in.k + row, pair.stride, s.count, copier);
      if (kCluster || at.slice == 1) load_tile(s.q, in.q + row, pair.stride, s.count, copier);
      if (kCluster || at.slice == 2) load_tile(s.v, in.v + row, pair.stride, s.count, copier);
      if ((kCluster || at.slice == 3) && copier < kTokens) {
        load_rates(const_cast<float*>(s.rates), in.token_lr + row / kFeatures, in.num_heads,
                   s.count, copier);
      }
    }
    copy_async_commit();
  }

  /// A partial sum of two neighbouring features goes to the warp that owns the token.
  __device__ void send(float* partial, int token, int column, float low, float high) const {
    if constexpr (kCluster) {
      const int row = at.slice * Layout::kOwnedTokens + token % Layout::kOwnedTokens;
      store_in_cluster(partial + wide_index(row, column), token / Layout::kOwnedTokens, low, high);
    } else {
      const int row = at.slice * kTokens + token;
      *reinterpret_cast<float2*>(partial + wide_index(row, column)) = make_float2(low, high);
    }
  }
  __device__ void send(float* partial, const Square& c) const {
    for (int j = 0; j < 2; ++j) {
      for (int k = 0; k < 2; ++k) {
        send(partial, at.g + 8 * k, at.first_output() + 8 * j + 2 * at.t, c[j][2 * k],
             c[j][2 * k + 1]);
      }
    }
  }
  /// Adds the slices' partial sums of this warp's token, in order.
  __device__ void add_partials(float (&z)[2], const float* partial) const {
    for (int slice = 0; slice < kSlices; ++slice) {
      const int row = slice * Layout::kOwnedTokens + at.token % Layout::kOwnedTokens;
      const float* const from = partial + wide_index(row, 2 * at.lane);
      z[0] += from[0];
      z[1] += from[1];
    }
  }

  __device__ void load_state();
  __device__ void store_state(const StatePointers& to, bool with_means) const;
  __device__ void hidden_layer(const ForwardStage& s, std::byte* x2);
  __device__ void send_output(const std::byte* x2) const;
  __device__ void finish_tokens(const ForwardStage& s, bool has_previous, bool is_live);
  __device__ void step_hidden(const ForwardStage& s, float step);
  __device__ void read_and_step(const std::byte* x2, float step);
  __device__ void run();
};

template <bool kCluster>
__device__ __forceinline__ void Forward<kCluster>::hidden_layer(const ForwardStage& s,
                                                                std::byte* x2) {
  Square scores = {};
  Square z1;
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) z1[j][i] = z1_bar[j][i] = b1[j][i & 1];
  }
  read_layer(z1, z1_bar, scores, s.k, s.q, w1, at);
  read_weights(weights, scores, 1.0F, RowScales(in.token_scale, at), at);
  Square value, derivative;
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      const Gelu phi = gelu(z1[j][i]);
      value[j][i] = phi.value;
      derivative[j][i] = phi.slope;
    }
  }
  pack(slope, derivative);
  Fragment packed;
  pack(packed, value);
  store_fragment(x2, packed, at);
}

template <bool kCluster>
__device__ __forceinline__ void Forward<kCluster>::send_output(const std::byte* x2) const {
  Square z2 = {};
  add_times_state(z2, x2, w2, at);
  send(floats(Layout::kZ2), z2);
}

/// The owner of a token: its output of the previous mini-batch, then l G2 of this one.
template <bool kCluster>
__device__ __forceinline__ void Forward<kCluster>::finish_tokens(const ForwardStage& s,
                                                                 bool has_previous, bool is_live) {
  const std::int64_t row = pair.row(s.begin + at.token) + 2 * at.lane;
  const LaneNorm norm(in, pair.head, at);
  if (has_previous) {
    float z[2] = {};
    add_partials(z, floats(Layout::kZ2Bar));
    const NormalizedRow normalized = normalize_row(z);
    if (s.begin - kTokens + at.token < in.num_tokens) {
      *reinterpret_cast<std::uint32_t*>(arguments.out + row - std::int64_t{kTokens} * pair.stride) =
          pack_bf16(low_bf16(previous_q) + norm.weight[0] * normalized.n[0] + norm.bias[0],
                    high_bf16(previous_q) + norm.weight[1] * normalized.n[1] + norm.bias[1]);
    }
  }
  if (!is_live) return;
  float z[2] = {floats(Layout::kB2)[2 * at.lane], floats(Layout::kB2)[2 * at.lane + 1]};
  add_partials(z, floats(Layout::kZ2));
  const std::uint32_t k = pair_at(s.k, at.token, 2 * at.lane);
  const std::uint32_t v = pair_at(s.v, at.token, 2 * at.lane);
  float gap[2];
  inner_loss_gap(gap, k, v, norm);
  const InnerLossRow loss = inner_loss_row(z, gap, norm, mean_square);
  const float rate = s.rates[at.token];
  const std::uint32_t g2 =
      pack_bf16(rate * loss.gradient(0, norm.weight[0]), rate * loss.gradient(1, norm.weight[1]));
  std::uint32_t* const to = &pair_at(shared + Layout::kG2, at.token, 2 * at.lane);
  if constexpr (kCluster) {
    for (int rank = 0; rank < kSlices; ++rank) store_in_cluster(to, rank, g2);
  } else {
    *to = g2;
  }
  if (arguments.step_gradients != nullptr && at.token < s.count) {
    *reinterpret_cast<std::uint32_t*>(arguments.step_gradients + row) = g2;
  }
  previous_q = pair_at(s.q, at.token, 2 * at.lane);
}

template <bool kCluster>
__device__ __forceinline__ void Forward<kCluster>::step_hidden(const ForwardStage& s, float step) {
  Square u = {};
  add_times_matrix(u, shared + Layout::kG2, w2_matrix(), at);
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) u[j][i] *= element(slope, j, i);
  }
  Fragment g1;
  pack(g1, u);
  if (arguments.hidden_step_gradients != nullptr) {
    const std::int64_t first = (pair.row(s.begin)) * kSlices + at.first_hidden();
    for (int j = 0; j < 2; ++j) {
      for (int k = 0; k < 2; ++k) {
        const int token = at.g + 8 * k;
        if (token < s.count) {
          *reinterpret_cast<std::uint32_t*>(arguments.hidden_step_gradients + first +
                                            token * pair.stride * kSlices + 8 * j + 2 * at.t) =
              g1[2 * j + k];
        }
      }
    }
  }
  Fragment b, a;
  for (int i = 0; i < 4; ++i) b[i] = movmatrix_transposed(g1[i]);
  reorder(a, b);
  Square value;
  for (int j = 0; j < 2; ++j) {
    mma_m16n8k16(z1_bar[j], weights, b[2 * j], b[2 * j + 1]);
    for (int i = 0; i < 4; ++i) value[j][i] = gelu(z1_bar[j][i]).value;
  }
  Fragment packed;
  pack(packed, value);
  store_fragment(slice_tile(Layout::kX2Bar), packed, at);
  float sums[2][2];
  sum_over_tokens(sums, b);
  for (int j = 0; j < 2; ++j) {
    for (int e = 0; e < 2; ++e) b1[j][e] -= step * sums[j][e];
  }
  update_state(w1, a, s.k, -step, at);
}

template <bool kCluster>
__device__ __forceinline__ void Forward<kCluster>::read_and_step(const std::byte* x2, float step) {
  const std::byte* const x2_bar = slice_tile(Layout::kX2Bar);
  // What is not a sum over hidden units, b2 and the "+1" of the scores, is slice 0's.
  float* const b2 = floats(Layout::kB2) + at.first_output() + 2 * at.t;
  Square z2 = {};
  if (at.slice == 0) {
    for (int j = 0; j < 2; ++j) {
      for (int i = 0; i < 4; ++i) z2[j][i] = b2[8 * j + (i & 1)];
    }
  }
  Square scores = {};
  read_outputs(z2, scores, x2, x2_bar, w2, at);
  read_weights(weights, scores, at.slice == 0 ? 1.0F : 0.0F, RowScales(in.token_scale, at), at);
  Fragment b, a;
  load_transposed(b, shared + Layout::kG2, at.quarter, at);
  for (int j = 0; j < 2; ++j) mma_m16n8k16(z2[j], weights, b[2 * j], b[2 * j + 1]);
  send(floats(Layout::kZ2Bar), z2);
  if (kCluster || at.slice == 0) {  // every block has a copy of b2
    float sums[2][2];
    sum_over_tokens(sums, b);
    __syncwarp();  // these entries have been read above, by this warp alone
    if (at.g == 0) {
      for (int j = 0; j < 2; ++j) {
        for (int e = 0; e < 2; ++e) b2[8 * j + e] -= step * sums[j][e];
      }
    }
  }
  reorder(a, b);
  update_state(w2, a, x2, -step, at);
  publish(w2_matrix(), w2, at);
}

}  // namespace ttt::kernels::cuda::mlp
