#pragma once
// The fused forward of TTT-MLP on one pair; ttt_mlp.h tells how a pair lies on the warps.
//
// One mini-batch, with the barriers between its phases (slice: the warps of a slice; pair: all of a pair's warps):
//   hidden_layer        Z1 = k W1 + b1, Z1' without the step; X2 = phi(Z1)                      slice
//   send_output         Z2's partial sums over the slice to the tokens' owners                  pair
//   finish_tokens       owners: out of the previous mini-batch; l G2 of this one to everyone    pair
//   step_hidden         l G1 = (l G2 W2^T) phi'(Z1); X2' = phi(Z1'); W1 and b1 take their step  slice
//   read_and_step       Z2's partial sums at X2' to the owners; W2 and b2 take their step
// In a cluster what the pair's warps wait for is sent to them through distributed shared memory, and no barrier is behind
// it: who sends Z2 of the next mini-batch has got this one's G2 from all owners, so they have read Z2; who sends G2 has got
// the next Z2 from all warps, so they have read the G2 before. Sums have the same order, so bits are the same.

#include "kernels/cuda/ttt_mlp.h"
#include "kernels/cuda/ttt_mlp_rows.h"

namespace ttt::kernels::cuda::mlp {

struct ForwardArguments {
  Inputs in;
  StatePointers initial, final_state, checkpoint;
  BFloat16 *out, *step_gradients, *hidden_step_gradients;  // the last two null when not saved
};

template <int F, bool kCluster>
struct ForwardLayout {
  static constexpr int kLocalSlices = kCluster ? 1 : kSlices;
  static constexpr int kThreads = kLocalSlices * Layout<F>::kThreads;
  static constexpr int kTileBytes = Layout<F>::kTileBytes;
  static constexpr int kStages = 3;
  static constexpr int kStageBytes = 3 * kTileBytes + Layout<F>::kRateBytes;  // k, q, v
  static constexpr int kMatrixBytes = F * Layout<F>::kRowBytes;
  static constexpr int kPartialBytes = kLocalSlices * kTokens * kPartialStride<F> * 4;
  // Byte offsets. X2 has two buffers: the next mini-batch's is written while slower warps still read this one's.
  static constexpr int kX2 = kStages * kStageBytes;
  static constexpr int kX2Bar = kX2 + 2 * kLocalSlices * kTileBytes;
  static constexpr int kG2 = kX2Bar + kLocalSlices * kTileBytes;
  static constexpr int kW2 = kG2 + kTileBytes;
  static constexpr int kZ2 = kW2 + kLocalSlices * kMatrixBytes;
  static constexpr int kZ2Bar = kZ2 + kPartialBytes;
  static constexpr int kB2 = kZ2Bar + kPartialBytes;
  static constexpr int kB1 = kB2 + F * 4;
  static constexpr int kRowMeans = kB1 + kLocalSlices * F * 4;  // of the initial W2
  static constexpr int kB2Mean = kRowMeans + kLocalSlices * F * 4;
  static constexpr int kScores = kB2Mean + 16;  // of both layers: what multiplies l G
  static constexpr int kGamma = kScores + 2 * kLocalSlices * kScoreBytes;
  static constexpr int kBeta = kGamma + F * 4;
  // Each thread's own fragment of phi'(Z1), from hidden_layer to step_hidden.
  static constexpr int kSlope = kBeta + F * 4;
  // And an owner's words of q, of the row whose output is still to be written.
  static constexpr int kQ = kSlope + kThreads * 16;
  static constexpr int kMail =
      kQ + kThreads * 4 * ((F / 2 + 31) / 32);    // two mailboxes: of Z2 and Z2', of G2
  static constexpr int kMeanSquare = kMail + 16;  // of gamma
  static constexpr int kBytes = kMeanSquare + 16;
  static_assert(kSlope % 16 == 0);
};

/// A mini-batch's inputs in shared memory.
struct ForwardStage {
  std::byte *k, *q, *v;
  float* rates;
};

/// One thread's part of a pair.
template <int F, bool kCluster>
struct Forward {
  using L = ForwardLayout<F, kCluster>;

  const ForwardArguments& arguments;
  const Inputs& in;
  std::byte* const shared;
  Place<F> at;
  const int pair;
  const PairRows rows;
  StateTile<F> w1, w2;
  Square z1_bar;  // from one phase to the next

  __device__ Forward(const ForwardArguments& all, std::byte* shared_bytes)
      : arguments(all),
        in(all.in),
        shared(shared_bytes),
        at(place()),
        pair(static_cast<int>(kCluster ? blockIdx.x / kSlices : blockIdx.x)),
        rows(fused::rows_of_pair(static_cast<unsigned>(pair), in)) {}

  __device__ static Place<F> place() { return Place<F>(kCluster ? cluster_rank() : -1); }
  /// Where registers are short, addresses of one phase are not kept for the next one.
  __device__ void begin_phase() {
    if constexpr (!(kCluster && F == 64)) at = place();
  }
  __device__ void slice_barrier() const {
    if constexpr (kCluster) {
      __syncthreads();
    } else {
      named_barrier(1 + at.local_slice, Layout<F>::kThreads);
    }
  }
  __device__ Mailbox* z2_mail() const { return reinterpret_cast<Mailbox*>(shared + L::kMail); }
  __device__ Mailbox* g2_mail() const { return z2_mail() + 1; }
  /// In a cluster before anyone sends: every block has started, and its mailboxes are open.
  __device__ void first_barrier() const {
    if constexpr (kCluster) {
      if (threadIdx.x == 0) {
        open_mailbox(z2_mail());
        open_mailbox(g2_mail());
      }
      cluster_barrier();
    } else {
      __syncthreads();
    }
  }
  /// What has been sent in round m is there: the sums of Z2, of mini-batch m, and Z2', of the one before.
  __device__ void wait_for_sums(int m) const {
    if constexpr (kCluster) {
      const bool is_end = m == 0 || m == rows.num_mini_batches();
      receive(z2_mail(), m, (is_end ? 1 : 2) * kPartialsMail<F>);
    } else {
      __syncthreads();
    }
  }
  __device__ void wait_for_g2(int m) const {
    if constexpr (kCluster) {
      receive(g2_mail(), m, kRowsMail<F>);
    } else {
      __syncthreads();
    }
  }

  __device__ std::byte* slice_tile(int offset) const {
    return shared + offset + at.local_slice * L::kTileBytes;
  }
  __device__ std::byte* x2_tile(int m) const {
    return slice_tile(L::kX2 + m % 2 * L::kLocalSlices * L::kTileBytes);
  }
  __device__ std::byte* w2_matrix() const {
    return shared + L::kW2 + at.local_slice * L::kMatrixBytes;
  }
  __device__ std::byte* scores(int layer) const {
    return shared + L::kScores + (2 * at.local_slice + layer) * kScoreBytes;
  }
  __device__ float* floats(int offset) const { return reinterpret_cast<float*>(shared + offset); }
  __device__ float* b1() const { return floats(L::kB1) + at.local_slice * F + 16 * at.warp; }
  __device__ std::uint32_t& previous_q(int i) const {
    return reinterpret_cast<std::uint32_t*>(shared + L::kQ)[i * L::kThreads + threadIdx.x];
  }
  __device__ float* row_means() const { return floats(L::kRowMeans) + at.local_slice * F; }
  /// What every block has a copy of is done by one slice of each.
  __device__ bool is_first_of_block() const { return kCluster || at.slice == 0; }

  __device__ ForwardStage stage(int m) const {
    std::byte* const bytes = shared + m % L::kStages * L::kStageBytes;
    return {bytes, bytes + L::kTileBytes, bytes + 2 * L::kTileBytes,
            reinterpret_cast<float*>(bytes + 3 * L::kTileBytes)};
  }

  /// Queues the copies of mini-batch m; beyond the sequence an empty group, so that every mini-batch is one group.
  __device__ void load_stage(int m) const {
    if (m < rows.num_mini_batches()) {
      const ForwardStage s = stage(m);
      const int thread = 32 * at.warp + at.lane;
      const TileCopy<F> copy(rows, m, F, thread);
      // With four slices, each of the first three loads one tensor and the last one the rates.
      const auto is_mine = [&](int slice) { return kCluster || at.slice == slice; };
      if (is_mine(0)) copy(s.k, in.k);
      if (is_mine(1)) copy(s.q, in.q);
      if (is_mine(2)) copy(s.v, in.v);
      if (is_mine(3)) fused::copy_rates_async(s.rates, in.token_lr, rows, m, thread);
    }
    copy_async_commit();
  }

  __device__ void load_state();
  __device__ void store_state(const StatePointers& to, bool with_means);
  __device__ void hidden_layer(const ForwardStage& s, std::byte* x2);
  __device__ void send_output(const std::byte* x2) const;
  __device__ void finish_tokens(const ForwardStage& s, int m);
  __device__ void write_output(int m, const LaneNorm<F>& norm) const;
  __device__ void step_hidden(const ForwardStage& s, int m, float step);
  __device__ void read_and_step(const std::byte* x2, float step);
  __device__ void run();
};

template <int F, bool kCluster>
__device__ __forceinline__ void Forward<F, kCluster>::hidden_layer(const ForwardStage& s,
                                                                   std::byte* x2) {
  if (at.makes_scores(0)) {
    store_read_weights(scores(0), causal_scores<F>(s.q, s.k, 1.0F, at),
                       RowScales(in.token_scale, at.g), at);
  }
  Square z1;
  start_with(z1, b1(), at);
  start_with(z1_bar, b1(), at);
  read_layer<F>(z1, z1_bar, s.k, s.q, w1, at);
  Square value, derivative;
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      const Gelu phi = gelu(z1[j][i]);
      value[j][i] = phi.value;
      derivative[j][i] = phi.slope;
    }
  }
  Fragment packed;
  pack(packed, derivative);
  keep_fragment(shared + L::kSlope, packed);
  pack(packed, value);
  store_fragment(x2, packed, at);
}

template <int F, bool kCluster>
__device__ __forceinline__ void Forward<F, kCluster>::send_output(const std::byte* x2) const {
  Square z2 = {};
  add_times_state<F>(z2, x2, w2, at);
  send<F, kCluster>(floats(L::kZ2), z2, at, z2_mail());
}

/// Of the token of mini-batch m that this warp owns, whose Z2' is there.
template <int F, bool kCluster>
__device__ __forceinline__ void Forward<F, kCluster>::write_output(int m,
                                                                   const LaneNorm<F>& norm) const {
  LaneRow<F> z = {};
  add_partials<F, kCluster>(z, floats(L::kZ2Bar), at);
  const NormalizedRow<F> row(z);
  if (at.token() >= rows.count(m)) return;
  BFloat16* const to = arguments.out + rows.row(m * kTokens + at.token()) * F;
  for_each_pair<F>(at.lane, [&](int i, int feature) {
    const auto y = [&](int e) { return norm.weight[e] * row.n[e] + norm.bias[e]; };
    *reinterpret_cast<std::uint32_t*>(to + feature) =
        pack_bf16(low_bf16(previous_q(i)) + y(2 * i), high_bf16(previous_q(i)) + y(2 * i + 1));
  });
}

/// The owner of a token: its output of the previous mini-batch, then l G2 of this one, if there is one.
template <int F, bool kCluster>
__device__ __forceinline__ void Forward<F, kCluster>::finish_tokens(const ForwardStage& s, int m) {
  if (!at.owns_token()) return;
  const LaneNorm<F> norm(floats(L::kGamma), floats(L::kBeta), at.lane);
  if (m > 0) write_output(m - 1, norm);
  if (m == rows.num_mini_batches()) return;
  LaneRow<F> z;
  load_row<F>(z, floats(L::kB2), at.lane);
  add_partials<F, kCluster>(z, floats(L::kZ2), at);
  std::uint32_t k[kLanePairs<F>], v[kLanePairs<F>];
  load_words<F>(k, s.k, at.token(), at.lane);
  load_words<F>(v, s.v, at.token(), at.lane);
  InnerLossRow<F> loss;
  inner_loss_row<F>(loss, z, k, v, norm, floats(L::kMeanSquare)[0]);
  const float rate = s.rates[at.token()];
  for_each_pair<F>(at.lane, [&](int i, int feature) {
    const std::uint32_t g2 = pack_bf16(rate * loss.gradient(2 * i, norm.weight[2 * i]),
                                       rate * loss.gradient(2 * i + 1, norm.weight[2 * i + 1]));
    send_to_all<kCluster>(pair_at<F>(shared + L::kG2, at.token(), feature), g2, g2_mail());
    if (arguments.step_gradients != nullptr && at.token() < rows.count(m)) {
      *reinterpret_cast<std::uint32_t*>(arguments.step_gradients +
                                        rows.row(m * kTokens + at.token()) * F + feature) = g2;
    }
  });
  for_each_pair<F>(
      at.lane, [&](int i, int feature) { previous_q(i) = pair_at<F>(s.q, at.token(), feature); });
}

template <int F, bool kCluster>
__device__ __forceinline__ void Forward<F, kCluster>::step_hidden(const ForwardStage& s, int m,
                                                                  float step) {
  Square u = {};
  add_times_matrix(u, shared + L::kG2, w2_matrix(), at);
  Fragment slope;
  load_kept(slope, shared + L::kSlope);
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) u[j][i] *= unpacked(slope, j, i);
  }
  Fragment g1;
  pack(g1, u);
  if (arguments.hidden_step_gradients != nullptr) {
    for (int k = 0; k < 2; ++k) {
      const int token = at.g + 8 * k;
      if (token >= rows.count(m)) continue;
      BFloat16* const to = arguments.hidden_step_gradients +
                           rows.row(m * kTokens + token) * kHidden<F> + at.first_hidden() +
                           2 * at.t;
      for (int j = 0; j < 2; ++j) *reinterpret_cast<std::uint32_t*>(to + 8 * j) = g1[2 * j + k];
    }
  }
  Fragment g1_t;
  transpose_blocks(g1_t, g1);
  Fragment weights;
  load_scores(weights, scores(0), at.lane);
  multiply_add(z1_bar, weights, g1_t);
  Square value;
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) value[j][i] = gelu(z1_bar[j][i]).value;
  }
  Fragment packed;
  pack(packed, value);
  store_fragment(slice_tile(L::kX2Bar), packed, at);
  add_row_sums(b1(), g1_t, -step, at);
  add_outer_product<F>(w1, s.k, g1_t, -step, at.lane);
}

template <int F, bool kCluster>
__device__ __forceinline__ void Forward<F, kCluster>::read_and_step(const std::byte* x2,
                                                                    float step) {
  const std::byte* const x2_bar = slice_tile(L::kX2Bar);
  const std::byte* const g2 = shared + L::kG2;
  // What is not a sum over hidden units, b2 and the "+1" of the scores, is slice 0's.
  if (at.makes_scores(1)) {
    store_read_weights(scores(1), causal_scores<F>(x2_bar, x2, at.slice == 0 ? 1.0F : 0.0F, at),
                       RowScales(in.token_scale, at.g), at);
  }
  float* const b2 = floats(L::kB2) + at.first_output();
  Square z2 = {};
  if (at.slice == 0) start_with(z2, b2, at);
  add_times_state<F>(z2, x2_bar, w2, at);
  Fragment g2_t;
  load_transposed_left<F>(g2_t, g2, at.warp, at.lane);
  if (is_first_of_block()) {
    __syncwarp();  // these entries have been read above, by this warp alone
    add_row_sums(b2, g2_t, -step, at);
  }
  add_outer_product<F>(w2, x2, g2_t, -step, at.lane);
  publish<F>(w2_matrix(), w2, at);
  slice_barrier();
  Fragment weights;
  load_scores(weights, scores(1), at.lane);
  load_transposed<F>(g2_t, g2, at.warp, 0, at.lane);
  multiply_add(z2, weights, g2_t);
  send<F, kCluster>(floats(L::kZ2Bar), z2, at, z2_mail());
}

}  // namespace ttt::kernels::cuda::mlp
