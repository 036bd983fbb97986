#pragma once
// The phases of a mini-batch in the backward of TTT-MLP, in their order.

#include "kernels/cuda/ttt_mlp_backward.h"

namespace ttt::kernels::cuda::mlp {

template <int F>
__device__ __forceinline__ void Backward<F>::make_scores(int layer, const std::byte* x_bar,
                                                         const std::byte* x) const {
  if (!at.makes_scores(layer)) return;
  const ScoreColumns<F> scores = causal_scores<F>(x_bar, x, one(layer), at);
  own_scores(layer) = {pack_bf16(scores.x[0], scores.x[1]), pack_bf16(scores.x[2], scores.x[3])};
  store_read_weights(read_weights(layer), scores, RowScales(in.token_scale, at.g), at);
}
/// The read step is -c_i (scores + 1) g: to the scores, and to dL/dc_i for this lane's two rows.
template <int F>
__device__ __forceinline__ void Backward<F>::make_score_gradients(int layer,
                                                                  const std::byte* d_z_bar,
                                                                  const std::byte* g) {
  if (!at.makes_scores(layer)) return;
  ScoreColumns<F> d;
  d.add_product(d_z_bar, g, at);
  d.mask(at);
  const uint2 scores = own_scores(layer);
  d_scale[0] -= d.x[0] * low_bf16(scores.x) + d.x[1] * high_bf16(scores.x);
  d_scale[1] -= d.x[2] * low_bf16(scores.y) + d.x[3] * high_bf16(scores.y);
  store_read_weights(tile(L::kDScores), d, RowScales(in.token_scale, at.g), at);
}

template <int F>
__device__ __forceinline__ void Backward<F>::restore_hidden(const BackwardStage& s) {
  const float step = step_scale();
  make_scores(0, s.q, s.k);
  Fragment g1_t;
  load_transposed_left<F>(g1_t, s.g1, at.warp, at.lane);
  add_outer_product<F>(w1, s.k, g1_t, step, at.lane);
  add_column_sums(L::kB1, g1_t, step);
  __syncwarp();
  Square z, z_bar;
  start_with_bias(z, L::kB1);
  start_with_bias(z_bar, L::kB1);
  read_layer<F>(z, z_bar, s.k, s.q, w1, at);
  Fragment value, slope, bend, slope_bar;  // phi, phi', phi'' at Z1; at Z1'
  for (int j = 0; j < 2; ++j) {
    for (int k = 0; k < 2; ++k) {
      const Gelu low = gelu(z[j][2 * k]);
      const Gelu high = gelu(z[j][2 * k + 1]);
      value[2 * j + k] = pack_bf16(low.value, high.value);
      slope[2 * j + k] = pack_bf16(low.slope, high.slope);
      bend[2 * j + k] = pack_bf16(low.bend, high.bend);
    }
  }
  store_fragment(tile(L::kX2), value, at);
  keep_fragment(tile(L::kSlope), slope);
  keep_fragment(tile(L::kBend), bend);

  __syncthreads();  // the scores
  Fragment weights;
  load_scores(weights, read_weights(0), at.lane);
  load_transposed<F>(g1_t, s.g1, at.warp, 0, at.lane);
  multiply_add(z_bar, weights, g1_t);
  for (int j = 0; j < 2; ++j) {
    for (int k = 0; k < 2; ++k) {
      const Gelu low = gelu(z_bar[j][2 * k]);
      const Gelu high = gelu(z_bar[j][2 * k + 1]);
      value[2 * j + k] = pack_bf16(low.value, high.value);
      slope_bar[2 * j + k] = pack_bf16(low.slope, high.slope);
    }
  }
  store_fragment(tile(L::kX2Bar), value, at);
  keep_fragment(tile(L::kSlopeBar), slope_bar);
}

template <int F>
__device__ __forceinline__ void Backward<F>::restore_output(const BackwardStage& s) {
  const float step = step_scale();
  make_scores(1, tile(L::kX2Bar), tile(L::kX2));
  Fragment g2_t;
  load_transposed_left<F>(g2_t, s.g2, at.warp, at.lane);
  add_outer_product<F>(w2, tile(L::kX2), g2_t, step, at.lane);
  add_column_sums(L::kB2, g2_t, step);
  Square z = {}, z_bar = {};
  read_layer<F>(z, z_bar, tile(L::kX2), tile(L::kX2Bar), w2, at);
  send<F, true>(floats(L::kZ2), z, at, mail(kOutputSums));
  publish<F>(matrix(), w2, at);
  if (at.owns_token()) load_words<F>(owned().d_out, s.d_out, at.token(), at.lane);
  __syncthreads();  // the scores, W2, and b2 for the owners; d_out has been read
  Fragment weights;
  load_scores(weights, read_weights(1), at.lane);
  load_transposed<F>(g2_t, s.g2, at.warp, 0, at.lane);
  multiply_add(z_bar, weights, g2_t);
  send<F, true>(floats(L::kZ2Bar), z_bar, at, mail(kOutputSums));
}

/// d_Z2' through the output's LayerNorm, and what the inner loss needs later.
template <int F>
__device__ __forceinline__ void Backward<F>::output_rows(const BackwardStage& s) {
  if (!at.owns_token()) return;
  OwnedRow<F>& own = owned();
  const LaneNorm<F> norm(floats(L::kGamma), floats(L::kBeta), at.lane);
  LaneRow<F> z, z_bar;
  load_row<F>(z, floats(L::kB2), at.lane);
  load_row<F>(z_bar, floats(L::kB2), at.lane);
  add_partials<F, true>(z, floats(L::kZ2), at);
  add_partials<F, true>(z_bar, floats(L::kZ2Bar), at);
  std::uint32_t k[kLanePairs<F>], v[kLanePairs<F>];
  load_words<F>(k, s.k, at.token(), at.lane);
  load_words<F>(v, s.v, at.token(), at.lane);
  inner_loss_row<F>(own.loss, z, k, v, norm, floats(L::kMeanSquare)[0]);

  const NormalizedRow<F> row(z_bar);
  LaneRow<F> d_n;
  float mean[2] = {};  // of d_n and d_n n
  for (int e = 0; e < kLaneFeatures<F>; ++e) {
    const float d = (e & 1) != 0 ? high_bf16(own.d_out[e / 2]) : low_bf16(own.d_out[e / 2]);
    d_n[e] = norm.weight[e] * d;
    mean[0] += d_n[e];
    mean[1] += d_n[e] * row.n[e];
    own.d_weight[e] += d * row.n[e];
    own.d_bias[e] += d;
  }
  mean_over_features<F>(mean);
  for_each_pair<F>(at.lane, [&](int i, int feature) {
    const auto d_z = [&](int e) { return (d_n[e] - mean[0] - row.n[e] * mean[1]) * row.rstd; };
    send_to_all<true>(pair_at<F>(s.d_out, at.token(), feature),
                      pack_bf16(d_z(2 * i), d_z(2 * i + 1)), mail(kOutputRows));
  });
}

template <int F>
__device__ __forceinline__ void Backward<F>::hidden_gradients(const BackwardStage& s) {
  const float step = step_scale();
  const std::byte* const d_z2_bar = s.d_out;
  const std::byte* const x2 = tile(L::kX2);
  const std::byte* const x2_bar = tile(L::kX2Bar);
  // Z2' = X2' W2 + b2 - c (S + 1) g2 with the causal scores S = X2' X2^T.
  make_score_gradients(1, d_z2_bar, s.g2);
  Fragment bend;
  Square u = {};  // g2 W2^T
  add_times_matrix(u, s.g2, matrix(), at);
  load_kept(bend, tile(L::kBend));
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) u[j][i] *= unpacked(bend, j, i);
  }
  pack(bend, u);
  Fragment x_t, packed;
  Square d_z1_bar = {};
  add_times_matrix(d_z1_bar, d_z2_bar, matrix(), at);
  __syncthreads();  // the scores' gradient
  load_scores(packed, tile(L::kDScores), at.lane);
  load_transposed<F>(x_t, x2, at.warp, 0, at.lane);
  multiply_add(d_z1_bar, packed, x_t);
  Fragment slope_bar, slope;
  load_kept(slope_bar, tile(L::kSlopeBar));
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) d_z1_bar[j][i] *= unpacked(slope_bar, j, i);
  }
  pack(packed, d_z1_bar);
  store_fragment(tile(L::kDZ1Bar), packed, at);
  through_hidden_step(s, packed, bend);

  // X2 takes part in the scores and, through the step, in the next state.
  Square d_x2 = {};
  add_times_wide_columns(d_x2, s.g2, floats(L::kDW2), at);
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) d_x2[j][i] *= -step;
  }
  load_scores_transposed(packed, tile(L::kDScores), at.lane);
  load_transposed<F>(x_t, x2_bar, at.warp, 0, at.lane);
  multiply_add(d_x2, packed, x_t);
  load_kept(slope, tile(L::kSlope));
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      d_x2[j][i] = unpacked(d_z1, j, i) + d_x2[j][i] * unpacked(slope, j, i);
    }
  }
  pack(d_z1, d_x2);
}

/// To g1 = u phi'(Z1), by the first layer's read and by its step; through g1 to u, and to Z1 in its slope.
template <int F>
__device__ __forceinline__ void Backward<F>::through_hidden_step(const BackwardStage& s,
                                                                 const Fragment& packed_d_z1_bar,
                                                                 const Fragment& bend) {
  const float step = step_scale();
  Square d_g1;  // first of the step: what W1 and b1 were changed by
  start_with_bias(d_g1, L::kDB1);
  add_times_wide_rows(d_g1, s.k, floats(L::kDW1), at);
  Fragment g1, d_z1_bar_t, weights_t;
  load_rows<F>(g1, s.g1, at.warp, at.lane);
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      d_step -= unpacked(g1, j, i) * d_g1[j][i];
      d_g1[j][i] *= -step;
    }
  }
  load_scores_transposed(weights_t, read_weights(0), at.lane);
  transpose_blocks(d_z1_bar_t, packed_d_z1_bar);
  multiply_add(d_g1, weights_t, d_z1_bar_t);
  Fragment slope;
  load_kept(slope, tile(L::kSlope));
  Square d_u;
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      d_u[j][i] = d_g1[j][i] * unpacked(slope, j, i);
      d_g1[j][i] *= unpacked(bend, j, i);  // which by now is u phi''(Z1)
    }
  }
  pack(d_z1, d_g1);
  Fragment packed;
  pack(packed, d_u);
  store_fragment(tile(L::kDU), packed, at);
}

template <int F>
__device__ __forceinline__ void Backward<F>::send_step_gradient(const BackwardStage& s) {
  const float step = step_scale();
  const std::byte* const x2 = tile(L::kX2);
  Square d_g2 = {};  // first of the step; b2's part, and that of d_b2, are the owners'
  add_times_wide_rows(d_g2, x2, floats(L::kDW2), at);
  Fragment g2;
  load_rows<F>(g2, s.g2, at.warp, at.lane);
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      d_step -= unpacked(g2, j, i) * d_g2[j][i];
      d_g2[j][i] *= -step;
    }
  }
  add_times_state<F>(d_g2, tile(L::kDU), w2, at);
  Fragment weights_t, d_z2_bar_t;
  load_scores_transposed(weights_t, read_weights(1), at.lane);
  load_transposed<F>(d_z2_bar_t, s.d_out, at.warp, 0, at.lane);
  multiply_add(d_g2, weights_t, d_z2_bar_t);
  send<F, true>(floats(L::kZ2), d_g2, at, mail(kStepSums));
}

/// Through G2, the gradient of the inner loss, to Z2 and the target v - k.
template <int F>
__device__ __forceinline__ void Backward<F>::inner_rows(const BackwardStage& s) {
  if (!at.owns_token()) return;
  const float step = step_scale();
  LaneRow<F> d_b2, d_g2;
  load_row<F>(d_b2, floats(L::kDB2), at.lane);
  std::uint32_t g2[kLanePairs<F>];
  load_words<F>(g2, s.g2, at.token(), at.lane);
  for (int e = 0; e < kLaneFeatures<F>; ++e) {
    d_g2[e] = -step * d_b2[e];
    d_step -= ((e & 1) != 0 ? high_bf16(g2[e / 2]) : low_bf16(g2[e / 2])) * d_b2[e];
  }
  add_partials<F, true>(d_g2, floats(L::kZ2), at);

  const LaneNorm<F> norm(floats(L::kGamma), floats(L::kBeta), at.lane);
  OwnedRow<F>& own = owned();
  const InnerLossRow<F> loss = own.loss;
  const float rate = s.rates[at.token()];
  float mean[3] = {};  // of d_g, d_g n and d_g2 G2
  for (int e = 0; e < kLaneFeatures<F>; ++e) {
    mean[0] += rate * d_g2[e];
    mean[1] += rate * d_g2[e] * loss.n[e];
    mean[2] += d_g2[e] * loss.gradient(e, norm.weight[e]);
  }
  mean_over_features<F>(mean);
  LaneRow<F> d_n;
  float mean_d_n[2] = {};  // of d_n and d_n n
  for (int e = 0; e < kLaneFeatures<F>; ++e) {
    const float d_g = rate * d_g2[e];
    const float u = norm.weight[e] * loss.e[e];
    const float d_u = (d_g - mean[0] - loss.n[e] * mean[1]) * loss.rstd;
    const float d_e = norm.weight[e] * d_u;
    d_n[e] = norm.weight[e] * d_e - (d_g * loss.mean_un + u * mean[1]) * loss.rstd;
    own.d_e[e] = d_e;
    own.d_weight[e] += loss.e[e] * d_u + loss.n[e] * d_e;
    own.d_bias[e] += d_e;
    mean_d_n[0] += d_n[e];
    mean_d_n[1] += d_n[e] * loss.n[e];
  }
  mean_over_features<F>(mean_d_n);
  const float along_n = mean_d_n[1] + rate * mean[2];  // the second: G2 is proportional to rstd
  for_each_pair<F>(at.lane, [&](int i, int feature) {
    const auto d_z = [&](int e) {
      return (d_n[e] - mean_d_n[0] - loss.n[e] * along_n) * loss.rstd;
    };
    send_to_all<true>(pair_at<F>(s.v, at.token(), feature), pack_bf16(d_z(2 * i), d_z(2 * i + 1)),
                      mail(kInnerRows));
    if (!has_token()) return;
    *reinterpret_cast<std::uint32_t*>(arguments.d_v + owned_row() * F + feature) =
        pack_bf16(-own.d_e[2 * i], -own.d_e[2 * i + 1]);
  });
  if (has_token() && at.lane == 0) arguments.d_token_lr[owned_row()] = F * mean[2];
}

template <int F>
__device__ __forceinline__ void Backward<F>::state_gradients(const BackwardStage& s) {
  const float step = step_scale();
  Square d_x2 = {};
  add_times_matrix(d_x2, s.v, matrix(), at);
  Fragment slope;
  load_kept(slope, tile(L::kSlope));
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      d_x2[j][i] = unpacked(d_z1, j, i) + d_x2[j][i] * unpacked(slope, j, i);
    }
  }
  pack(d_z1, d_x2);

  // W2 is read at X2' (d_Z2'), at X2 (d_Z2) and, transposed, by u = g2 W2^T.
  Fragment d_z2_bar_t, d_z2_t, g2_t;
  load_transposed_left<F>(d_z2_bar_t, s.d_out, at.warp, at.lane);
  load_transposed_left<F>(d_z2_t, s.v, at.warp, at.lane);
  load_transposed_left<F>(g2_t, s.g2, at.warp, at.lane);
  const WideRows<F> d_w(floats(L::kDW2), at);
#pragma unroll(kUnrolled <F>)
  for (int part = 0; part < F / 16; ++part) {
    Square sum = {};
    add_outer(sum, d_z2_bar_t, tile(L::kX2Bar), part, at);
    add_outer(sum, d_z2_t, tile(L::kX2), part, at);
    add_outer(sum, g2_t, tile(L::kDU), part, at);
    add_to_wide(d_w, sum, part);
  }
  // d_k by way of the step of W1, while the other warps' rows of d_W1 are still those after it.
  Square stepped = {};
  add_times_wide_columns(stepped, s.g1, floats(L::kDW1), at);
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) d_k[j][i] = -step * stepped[j][i];
  }
}

template <int F>
__device__ __forceinline__ void Backward<F>::hidden_state_gradients(const BackwardStage& s) {
  store_fragment(tile(L::kDU), d_z1, at);
  publish<F>(matrix(), w1, at);
  Fragment d_z1_bar_t, d_z1_t;
  load_transposed_left<F>(d_z1_bar_t, tile(L::kDZ1Bar), at.warp, at.lane);
  add_column_sums(L::kDB1, d_z1_bar_t, 1.0F);
  transpose_blocks(d_z1_t, d_z1);
  add_column_sums(L::kDB1, d_z1_t, 1.0F);
  Fragment d_z2_t;
  load_transposed_left<F>(d_z2_t, s.d_out, at.warp, at.lane);
  add_column_sums(L::kDB2, d_z2_t, 1.0F);
  load_transposed_left<F>(d_z2_t, s.v, at.warp, at.lane);
  add_column_sums(L::kDB2, d_z2_t, 1.0F);
  const WideRows<F> d_w(floats(L::kDW1), at);
#pragma unroll(kUnrolled <F>)
  for (int part = 0; part < F / 16; ++part) {
    Square sum = {};
    add_outer(sum, d_z1_bar_t, s.q, part, at);
    add_outer(sum, d_z1_t, s.k, part, at);
    add_to_wide(d_w, sum, part);
  }
}

template <int F>
__device__ __forceinline__ void Backward<F>::send_input_gradients(const BackwardStage& s) {
  const std::byte* const d_z1_bar = tile(L::kDZ1Bar);
  make_score_gradients(0, d_z1_bar, s.g1);
  Square d_q = {};
  add_times_matrix(d_q, d_z1_bar, matrix(), at);
  add_times_matrix(d_k, tile(L::kDU), matrix(), at);
  __syncthreads();  // the scores' gradient
  Fragment d_scores, q_t, k_t;
  load_scores(d_scores, tile(L::kDScores), at.lane);
  load_transposed<F>(k_t, s.k, at.warp, 0, at.lane);
  load_transposed<F>(q_t, s.q, at.warp, 0, at.lane);
  multiply_add(d_q, d_scores, k_t);
  load_scores_transposed(d_scores, tile(L::kDScores), at.lane);
  multiply_add(d_k, d_scores, q_t);
  send<F, true>(floats(L::kDQ), d_q, at, mail(kInputSums));
  send<F, true>(floats(L::kDK), d_k, at, mail(kInputSums));
}

template <int F>
__device__ __forceinline__ void Backward<F>::input_rows() const {
  if (!has_token()) return;
  const OwnedRow<F>& own = owned();
  LaneRow<F> d_query, d_key;
  for (int e = 0; e < kLaneFeatures<F>; ++e) {
    d_query[e] = (e & 1) != 0 ? high_bf16(own.d_out[e / 2]) : low_bf16(own.d_out[e / 2]);
    d_key[e] = own.d_e[e];
  }
  add_partials<F, true>(d_query, floats(L::kDQ), at);
  add_partials<F, true>(d_key, floats(L::kDK), at);
  for_each_pair<F>(at.lane, [&](int i, int feature) {
    const std::int64_t to = owned_row() * F + feature;
    *reinterpret_cast<std::uint32_t*>(arguments.d_q + to) =
        pack_bf16(d_query[2 * i], d_query[2 * i + 1]);
    *reinterpret_cast<std::uint32_t*>(arguments.d_k + to) =
        pack_bf16(d_key[2 * i], d_key[2 * i + 1]);
  });
}

}  // namespace ttt::kernels::cuda::mlp
