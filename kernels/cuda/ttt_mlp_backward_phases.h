#pragma once
// The phases of a mini-batch in the backward of TTT-MLP, in their order.

#include "kernels/cuda/ttt_mlp_backward.h"

namespace ttt::kernels::cuda::mlp {

/// From d = d_z' g^T: that of the causal weights (scores + 1), still to be multiplied by c_i, and that of the scores.
__device__ __forceinline__ void causal_scores(const Square& d, Fragment& d_read, Fragment& d_scores,
                                              const RowScales& scales, const Place& at) {
  Square causal, scaled;
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      causal[j][i] = is_causal(j, i, at) ? -d[j][i] : 0.0F;
      scaled[j][i] = causal[j][i] * scales.of(i);
    }
  }
  pack(d_read, causal);
  pack(d_scores, scaled);
}
/// What the read step adds to dL/dc_i for this lane's two rows.
__device__ __forceinline__ void add_scale_gradients(float (&d_scale)[2], const Fragment& d_read,
                                                    const Square& scores, float one) {
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) d_scale[i >> 1] += element(d_read, j, i) * (scores[j][i] + one);
  }
}

__device__ __forceinline__ void Backward::restore_hidden() {
  const float step = step_scale();
  Fragment a, b;
  load_transposed(b, g1_tile(), at.quarter, at);
  reorder(a, b);
  update_state(w1, a, tile(Layout::kK), step, at);
  float sums[2][2];
  sum_over_tokens(sums, b);
  const float change = step * at_bias_lane(sums);
  biases += at.lane < 16 ? change : 0.0F;
  Fragment value;
  Square z;
  fill_with_bias(z, 0);
  add_times_state(z, tile(Layout::kK), w1, at);
  for (int j = 0; j < 2; ++j) {
    for (int k = 0; k < 2; ++k) {
      const Gelu low = gelu(z[j][2 * k]);
      const Gelu high = gelu(z[j][2 * k + 1]);
      value[2 * j + k] = pack_bf16(low.value, high.value);
      slope[2 * j + k] = pack_bf16(low.slope, high.slope);
      bend[2 * j + k] = pack_bf16(low.bend, high.bend);
    }
  }
  store_fragment(slice_tile(Layout::kX2), value, at);

  Square z_bar, scores = {};
  fill_with_bias(z_bar, 0);
  read_outputs(z_bar, scores, tile(Layout::kK), tile(Layout::kQ), w1, at);
  read_weights(read1, scores, 1.0F, RowScales(in.token_scale, at), at);
  for (int j = 0; j < 2; ++j) mma_m16n8k16(z_bar[j], read1, b[2 * j], b[2 * j + 1]);
  for (int j = 0; j < 2; ++j) {
    for (int k = 0; k < 2; ++k) {
      const Gelu low = gelu(z_bar[j][2 * k]);
      const Gelu high = gelu(z_bar[j][2 * k + 1]);
      value[2 * j + k] = pack_bf16(low.value, high.value);
      slope_bar[2 * j + k] = pack_bf16(low.slope, high.slope);
    }
  }
  store_fragment(slice_tile(Layout::kX2Bar), value, at);
}

__device__ __forceinline__ void Backward::restore_output() {
  const float step = step_scale();
  Fragment a, b;
  load_transposed(b, tile(Layout::kG2), at.quarter, at);
  reorder(a, b);
  update_state(w2, a, slice_tile(Layout::kX2), step, at);
  if (at.slice == 0) add_column_sums(Layout::kB2, b, step);
  Square z = {};
  add_times_state(z, slice_tile(Layout::kX2), w2, at);
  send(Layout::kPartial, z);
  Square z_bar = {}, scores = {};
  read_outputs(z_bar, scores, slice_tile(Layout::kX2), slice_tile(Layout::kX2Bar), w2, at);
  Fragment read2;
  read_weights(read2, scores, one(), RowScales(in.token_scale, at), at);
  for (int j = 0; j < 2; ++j) mma_m16n8k16(z_bar[j], read2, b[2 * j], b[2 * j + 1]);
  send(Layout::kDZ1Bar, z_bar);
  publish(matrix(), w2, at);
}

/// d_Z2' through the output's LayerNorm, and what the inner loss needs later.
__device__ __forceinline__ void Backward::output_rows() {
  const float* const b2 = floats(Layout::kB2) + 2 * at.lane;
  float z[2] = {b2[0], b2[1]};
  float z_bar[2] = {b2[0], b2[1]};
  add_partials(z, Layout::kPartial);
  add_partials(z_bar, Layout::kDZ1Bar);
  const std::uint32_t k = pair_at(tile(Layout::kK), at.token, 2 * at.lane);
  const std::uint32_t v = pair_at(tile(Layout::kV), at.token, 2 * at.lane);
  const LaneNorm norm(in, pair.head, at);
  float gap[2];
  inner_loss_gap(gap, k, v, norm);
  const InnerLossRow loss = inner_loss_row(z, gap, norm, norm.mean_square());
  for (int e = 0; e < 2; ++e) n[e] = loss.n[e];
  if (at.lane == 0) {
    float* const kept = floats(Layout::kLoss) + 3 * at.token;
    kept[0] = loss.rstd;
    kept[1] = loss.mean_u;
    kept[2] = loss.mean_un;
  }
  const NormalizedRow row = normalize_row(z_bar);
  std::uint32_t& place = pair_at(tile(Layout::kDOut), at.token, 2 * at.lane);
  d_out = place;
  const float d[2] = {low_bf16(d_out), high_bf16(d_out)};
  const float d_n[2] = {norm.weight[0] * d[0], norm.weight[1] * d[1]};
  float mean[2] = {d_n[0] + d_n[1], d_n[0] * row.n[0] + d_n[1] * row.n[1]};
  mean_over_features(mean);
  for (int e = 0; e < 2; ++e) {
    d_weight[e] += d[e] * row.n[e];
    d_bias[e] += d[e];
  }
  place = pack_bf16((d_n[0] - mean[0] - row.n[0] * mean[1]) * row.rstd,
                    (d_n[1] - mean[0] - row.n[1] * mean[1]) * row.rstd);
}

__device__ __forceinline__ void Backward::hidden_gradients() {
  const float step = step_scale();
  const std::byte* const d_z2_bar = tile(Layout::kDOut);
  const std::byte* const x2 = slice_tile(Layout::kX2);
  const std::byte* const x2_bar = slice_tile(Layout::kX2Bar);
  Square u = {};  // g2 W2^T
  add_times_matrix(u, tile(Layout::kG2), matrix(), at);
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) u[j][i] *= element(bend, j, i);
  }
  pack(bend, u);

  // Z2' = X2' W2 + b2 - c (S + 1) g2 with the causal scores S = X2' X2^T.
  Fragment d_scores;
  {
    Fragment d_read2;
    Square d = {};
    add_rows_by_rows(d, d_z2_bar, tile(Layout::kG2), at);
    causal_scores(d, d_read2, d_scores, RowScales(in.token_scale, at), at);
    if (at.quarter == 0) {
      Square scores = {};
      add_rows_by_rows(scores, x2_bar, x2, at);
      add_scale_gradients(d_scale, d_read2, scores, one());
    }
  }
  Fragment b, packed;
  Square d_z1_bar = {};
  add_times_matrix(d_z1_bar, d_z2_bar, matrix(), at);
  load_transposed(b, x2, at.quarter, at);
  for (int j = 0; j < 2; ++j) {
    mma_m16n8k16(d_z1_bar[j], d_scores, b[2 * j], b[2 * j + 1]);
    for (int i = 0; i < 4; ++i) d_z1_bar[j][i] *= element(slope_bar, j, i);
  }
  pack(packed, d_z1_bar);
  store_fragment(slice_tile(Layout::kDZ1Bar), packed, at);
  through_hidden_step(packed);

  // X2 takes part in the scores and, through the step, in the next state.
  Square d_x2 = {};
  add_times_wide_columns(d_x2, tile(Layout::kG2), wide(Layout::kDW2), at);
  transpose(packed, d_scores);
  load_transposed(b, x2_bar, at.quarter, at);
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) d_x2[j][i] *= -step;
    mma_m16n8k16(d_x2[j], packed, b[2 * j], b[2 * j + 1]);
    for (int i = 0; i < 4; ++i) {
      d_x2[j][i] = element(d_z1, j, i) + d_x2[j][i] * element(slope, j, i);
    }
  }
  pack(d_z1, d_x2);
}

/// To g1 = u phi'(Z1), by the first layer's read and by its step; through g1 to u, and to Z1 in its slope.
__device__ __forceinline__ void Backward::through_hidden_step(const Fragment& packed_d_z1_bar) {
  const float step = step_scale();
  Fragment a, b;
  for (int i = 0; i < 4; ++i) b[i] = movmatrix_transposed(packed_d_z1_bar[i]);
  Square d_g1;  // first of the step: what W1 and b1 were changed by
  fill_with_bias(d_g1, 16);
  add_times_wide_rows(d_g1, tile(Layout::kK), wide(Layout::kDW1), at);
  Fragment g1;
  load_fragment(g1, g1_tile(), at.quarter, at);
  transpose(a, read1);
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      d_step -= element(g1, j, i) * d_g1[j][i];
      d_g1[j][i] *= -step;
    }
    mma_m16n8k16(d_g1[j], a, b[2 * j], b[2 * j + 1]);
  }
  Square d_u;
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      d_u[j][i] = d_g1[j][i] * element(slope, j, i);
      d_g1[j][i] *= element(bend, j, i);  // which by now is u phi''(Z1)
    }
  }
  pack(d_z1, d_g1);
  Fragment packed;
  pack(packed, d_u);
  store_fragment(slice_tile(Layout::kDU), packed, at);
}

__device__ __forceinline__ void Backward::send_step_gradient() {
  const float step = step_scale();
  const std::byte* const x2 = slice_tile(Layout::kX2);
  Square d_g2 = {};  // first of the step; b2's part, and that of d_b2, are the owners'
  add_times_wide_rows(d_g2, x2, wide(Layout::kDW2), at);
  Fragment g2;
  load_fragment(g2, tile(Layout::kG2), at.quarter, at);
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      d_step -= element(g2, j, i) * d_g2[j][i];
      d_g2[j][i] *= -step;
    }
  }
  add_times_state(d_g2, slice_tile(Layout::kDU), w2, at);
  Square scores = {};
  add_rows_by_rows(scores, slice_tile(Layout::kX2Bar), x2, at);
  Fragment read2, a, b;
  read_weights(read2, scores, one(), RowScales(in.token_scale, at), at);
  transpose(a, read2);
  load_transposed(b, tile(Layout::kDOut), at.quarter, at);
  for (int j = 0; j < 2; ++j) mma_m16n8k16(d_g2[j], a, b[2 * j], b[2 * j + 1]);
  send(Layout::kPartial, d_g2);
}

/// Through G2, the gradient of the inner loss, to Z2 and the target v - k.
__device__ __forceinline__ void Backward::inner_rows() {
  const float step = step_scale();
  const float* const d_b2 = floats(Layout::kDB2) + 2 * at.lane;
  float d_g2[2] = {-step * d_b2[0], -step * d_b2[1]};
  add_partials(d_g2, Layout::kPartial);
  const std::uint32_t g2 = pair_at(tile(Layout::kG2), at.token, 2 * at.lane);
  d_step -= low_bf16(g2) * d_b2[0] + high_bf16(g2) * d_b2[1];

  const LaneNorm norm(in, pair.head, at);
  float gap[2];
  inner_loss_gap(gap, pair_at(tile(Layout::kK), at.token, 2 * at.lane),
                 pair_at(tile(Layout::kV), at.token, 2 * at.lane), norm);
  const float* const kept = floats(Layout::kLoss) + 3 * at.token;
  const InnerLossRow loss = {{n[0], n[1]},
                             {norm.weight[0] * n[0] + gap[0], norm.weight[1] * n[1] + gap[1]},
                             kept[0],
                             kept[1],
                             kept[2]};
  const float rate = floats(Layout::kRates)[at.token];
  const float d_g[2] = {rate * d_g2[0], rate * d_g2[1]};
  float mean[3] = {};  // of d_g, d_g n and d_g2 G2
  for (int e = 0; e < 2; ++e) {
    mean[0] += d_g[e];
    mean[1] += d_g[e] * loss.n[e];
    mean[2] += d_g2[e] * loss.gradient(e, norm.weight[e]);
  }
  mean_over_features(mean);
  float d_n[2];
  float mean_d_n[2] = {};  // of d_n and d_n n
  for (int e = 0; e < 2; ++e) {
    const float u = norm.weight[e] * loss.e[e];
    const float d_u = (d_g[e] - mean[0] - loss.n[e] * mean[1]) * loss.rstd;
    d_e[e] = norm.weight[e] * d_u;
    d_n[e] = norm.weight[e] * d_e[e] - (d_g[e] * loss.mean_un + u * mean[1]) * loss.rstd;
    d_weight[e] += loss.e[e] * d_u + loss.n[e] * d_e[e];
    d_bias[e] += d_e[e];
    mean_d_n[0] += d_n[e];
    mean_d_n[1] += d_n[e] * loss.n[e];
  }
  mean_over_features(mean_d_n);
  const float along_n = mean_d_n[1] + rate * mean[2];  // the second: G2 is proportional to rstd
  pair_at(tile(Layout::kV), at.token, 2 * at.lane) =
      pack_bf16((d_n[0] - mean_d_n[0] - loss.n[0] * along_n) * loss.rstd,
                (d_n[1] - mean_d_n[0] - loss.n[1] * along_n) * loss.rstd);
  if (at.token < count()) {
    *reinterpret_cast<std::uint32_t*>(arguments.d_v + owned_row()) = pack_bf16(-d_e[0], -d_e[1]);
    if (at.lane == 0) arguments.d_token_lr[owned_row() / kFeatures] = kFeatures * mean[2];
  }
}

__device__ __forceinline__ void Backward::state_gradients() {
  const float step = step_scale();
  Square d_x2 = {};
  add_times_matrix(d_x2, tile(Layout::kV), matrix(), at);
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      d_x2[j][i] = element(d_z1, j, i) + d_x2[j][i] * element(slope, j, i);
    }
  }
  pack(d_z1, d_x2);

  // W2 is read at X2' (d_Z2'), at X2 (d_Z2) and, transposed, by u = g2 W2^T.
  Fragment d_z2_bar, d_z2, g2, b;
  load_transposed(b, tile(Layout::kDOut), at.quarter, at);
  reorder(d_z2_bar, b);
  if (at.slice == 0) add_column_sums(Layout::kDB2, b, 1.0F);
  load_transposed(b, tile(Layout::kV), at.quarter, at);
  reorder(d_z2, b);
  if (at.slice == 0) add_column_sums(Layout::kDB2, b, 1.0F);
  load_transposed(b, tile(Layout::kG2), at.quarter, at);
  reorder(g2, b);
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    Square sum = {};
    add_outer(sum, d_z2_bar, slice_tile(Layout::kX2Bar), part, at);
    add_outer(sum, d_z2, slice_tile(Layout::kX2), part, at);
    add_outer(sum, g2, slice_tile(Layout::kDU), part, at);
    add_to_wide(wide(Layout::kDW2), sum, part, at);
  }
  // d_k by way of the step of W1, while the other warps' rows of d_W1 are still those after it.
  Square stepped = {};
  add_times_wide_columns(stepped, g1_tile(), wide(Layout::kDW1), at);
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) d_k[j][i] = -step * stepped[j][i];
  }
}

__device__ __forceinline__ void Backward::hidden_state_gradients() {
  store_fragment(slice_tile(Layout::kDU), d_z1, at);
  publish(matrix(), w1, at);
  Fragment d_z1_bar, d_z1_now, b;
  float sums[2][2];
  load_transposed(b, slice_tile(Layout::kDZ1Bar), at.quarter, at);
  reorder(d_z1_bar, b);
  sum_over_tokens(sums, b);
  float change = at_bias_lane(sums);
  for (int i = 0; i < 4; ++i) b[i] = movmatrix_transposed(d_z1[i]);
  reorder(d_z1_now, b);
  sum_over_tokens(sums, b);
  change += at_bias_lane(sums);
  biases += at.lane >= 16 ? change : 0.0F;
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    Square sum = {};
    add_outer(sum, d_z1_bar, tile(Layout::kQ), part, at);
    add_outer(sum, d_z1_now, tile(Layout::kK), part, at);
    add_to_wide(wide(Layout::kDW1), sum, part, at);
  }
}

__device__ __forceinline__ void Backward::send_input_gradients() {
  const std::byte* const d_z1_bar = slice_tile(Layout::kDZ1Bar);
  Square d = {};
  add_rows_by_rows(d, d_z1_bar, g1_tile(), at);
  Fragment d_read1, d_scores, d_scores_transposed;
  causal_scores(d, d_read1, d_scores, RowScales(in.token_scale, at), at);
  transpose(d_scores_transposed, d_scores);
  if (at.quarter == 0) {
    Square scores = {};
    add_rows_by_rows(scores, tile(Layout::kQ), tile(Layout::kK), at);
    add_scale_gradients(d_scale, d_read1, scores, 1.0F);
  }
  Square d_q = {};
  add_times_matrix(d_q, d_z1_bar, matrix(), at);
  add_times_matrix(d_k, slice_tile(Layout::kDU), matrix(), at);
  Fragment q, k;
  load_transposed(k, tile(Layout::kK), at.quarter, at);
  load_transposed(q, tile(Layout::kQ), at.quarter, at);
  for (int j = 0; j < 2; ++j) {
    mma_m16n8k16(d_q[j], d_scores, k[2 * j], k[2 * j + 1]);
    mma_m16n8k16(d_k[j], d_scores_transposed, q[2 * j], q[2 * j + 1]);
  }
  send(Layout::kPartial, d_q);
  send(Layout::kX2, d_k);
}

/// `row` is owned_row() of the mini-batch whose gradients these are.
__device__ __forceinline__ void Backward::input_rows(std::int64_t row, bool is_token) const {
  float d_q[2] = {low_bf16(d_out), high_bf16(d_out)};
  float d_key[2] = {d_e[0], d_e[1]};
  add_partials(d_q, Layout::kPartial);
  add_partials(d_key, Layout::kX2);
  if (!is_token) return;
  *reinterpret_cast<std::uint32_t*>(arguments.d_q + row) = pack_bf16(d_q[0], d_q[1]);
  *reinterpret_cast<std::uint32_t*>(arguments.d_k + row) = pack_bf16(d_key[0], d_key[1]);
}

}  // namespace ttt::kernels::cuda::mlp
