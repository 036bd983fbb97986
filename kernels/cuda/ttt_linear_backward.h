#pragma once
// The phases of one mini-batch in the fused backward of TTT-Linear; kernels/cuda/ttt_linear_backward.cu puts them
// together and has the story, kernels/cuda/ttt_fused.h the layouts, docs/numerics.md, "TTT" the equations.

#include "kernels/cuda/ttt_linear_walk.h"

namespace ttt::kernels::cuda::fused::linear_backward {

#if defined(__CUDACC__) || defined(TTT_SIMT_EMULATOR)

template <int F>
__device__ __forceinline__ void put_word(std::byte* tile, int row, int chunk, std::uint32_t word) {
  *reinterpret_cast<std::uint32_t*>(tile + tile_offset<F>(row, chunk) + 4 * this_lane().t) = word;
}

// Z, Z' without its step, U, scores; and the operands' copies.
template <int F>
__device__ __forceinline__ void products(const BackwardStage<F>& stage, const Walk<F>& walk,
                                         std::byte* w_copy, std::byte* d_w_copy,
                                         float (&scores)[2][4], Values& x) {
  const Lane at = this_lane();
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      scores[j][r] = 0;
      x.z[j][r] = x.z_bar[j][r] = walk.state.b[j][r & 1];
      x.update_read[j][r] = walk.d_state.b[j][r & 1];
    }
  }
#pragma unroll
  for (int i = 0; i < F / 16; ++i) {
    std::uint32_t k[4], q[4];
    load_rows<F>(k, stage.k, i);
    load_rows<F>(q, stage.q, i);
    mma_m16n8k16(scores[0], q, k[0], k[2]);
    mma_m16n8k16(scores[1], q, k[1], k[3]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = 16 * at.warp + 8 * j + at.g;
      const uint2 w = operand(walk.state.w, i, j);
      mma_m16n8k16(x.z[j], k, w.x, w.y);
      mma_m16n8k16(x.z_bar[j], q, w.x, w.y);
      put_word<F>(w_copy, row, 2 * i, w.x);
      put_word<F>(w_copy, row, 2 * i + 1, w.y);
      const uint2 d_w = operand(walk.d_state.w, i, j);
      mma_m16n8k16(x.update_read[j], k, d_w.x, d_w.y);
      put_word<F>(d_w_copy, row, 2 * i, d_w.x);
      put_word<F>(d_w_copy, row, 2 * i + 1, d_w.y);
    }
  }
  mask_scores(scores);
}

// Completes Z' and sends off the sums of both LayerNorms.
template <int F>
__device__ __forceinline__ void read_and_sum(const BackwardStage<F>& stage, const Walk<F>& walk,
                                             const float (&scores)[2][4], const float* scales,
                                             const std::uint32_t (&step_t)[4], float* buffer,
                                             Values& x) {
  std::uint32_t steps[4];
  pack_steps(steps, scores, scales);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    mma_m16n8k16(x.z_bar[j], steps, step_t[2 * j], step_t[2 * j + 1]);
  }
  transpose_matrix(x.steps_t, steps);

  target_offset<F>(x.offset, stage.k, stage.v, walk.norm);
  load_rows<F>(x.d_out, stage.d_out, this_lane().warp);
  float sums[2][kBackwardSums] = {};
  add_z_sums(sums, x.z, x.offset, walk.norm);
  add_bar_sums(sums, x.z_bar);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float h = walk.norm.weight[j][r & 1] * unpacked(x.d_out, j, r);
      sums[r >> 1][kH] += h;
      sums[r >> 1][kHBar] += h * x.z_bar[j][r];
    }
  }
  put_sums(sums, buffer);
}

// dZ' of token k: d_out through LN(Z').
template <int F>
__device__ __forceinline__ void output_norm_backward(const float (&mean)[kBackwardSums], int k,
                                                     std::byte* d_z_bar_tile, Walk<F>& walk,
                                                     Values& x) {
  const Lane at = this_lane();
  const float rstd = rsqrtf(mean[kBarBar] - mean[kBar] * mean[kBar] + kNormEpsilon);
  const float mean_hx = (mean[kHBar] - mean[kBar] * mean[kH]) * rstd;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    float d_z_bar[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float d_out = unpacked(x.d_out, j, 2 * k + e);
      const float x_bar = (x.z_bar[j][2 * k + e] - mean[kBar]) * rstd;
      walk.d_norm_weight[j][e] += d_out * x_bar;
      walk.d_norm_bias[j][e] += d_out;
      d_z_bar[e] = (walk.norm.weight[j][e] * d_out - mean[kH] - x_bar * mean_hx) * rstd;
    }
    const std::uint32_t packed = pack_bf16(d_z_bar[0], d_z_bar[1]);
    put_word<F>(d_z_bar_tile, at.g + 8 * k, 2 * at.warp + j, packed);
    x.d_z_bar_t[2 * j + k] = movmatrix_transposed(packed);
  }
}

// d(l G) and its sums; Z becomes x.
template <int F>
__device__ __forceinline__ void step_backward(const BackwardStage<F>& stage,
                                              const TokenNorm (&token)[2], float last_scale,
                                              float* buffer, Walk<F>& walk, Values& x) {
  std::uint32_t step[4];
  load_rows<F>(step, stage.step, this_lane().warp);
  float sums[2][kStepSums] = {};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      walk.d_last_scale -= unpacked(step, j, r) * x.update_read[j][r];
      x.d_step[j][r] = -last_scale * x.update_read[j][r];
    }
    mma_m16n8k16(x.d_step[j], x.steps_t, x.d_z_bar_t[2 * j], x.d_z_bar_t[2 * j + 1]);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int k = r >> 1;
      x.z[j][r] = (x.z[j][r] - token[k].mean) * token[k].rstd;
      const float weight = walk.norm.weight[j][r & 1];
      const float e = weight * (weight * x.z[j][r] + x.offset[j][r]);
      const float d = x.d_step[j][r];
      const float ad = weight * weight * d;
      sums[k][kD] += d;
      sums[k][kDx] += d * x.z[j][r];
      sums[k][kDe] += d * e;
      sums[k][kAd] += ad;
      sums[k][kAdx] += ad * x.z[j][r];
    }
  }
  put_sums(sums, buffer);
}

// Through G = P(e) / s of token k, a second derivative: dZ and d target from d(l G); returns the rate's gradient.
template <int F>
__device__ __forceinline__ float loss_gradient_backward(const float (&mean)[kStepSums],
                                                        const TokenNorm& n, int k, float rate,
                                                        std::byte* d_z_tile, Walk<F>& walk,
                                                        Values& x, std::uint32_t (&d_z_t)[4]) {
  const Lane at = this_lane();
  const float mean_d = mean[kD], mean_dx = mean[kDx];
  const float mean_dg = (mean[kDe] - n.mean_e * mean_d - n.mean_ex * mean_dx) * n.rstd;
  // d_x = (a (d - mean_d - x mean_dx) - mean_ex d - mean_dx e) rstd: its means over features, and with x.
  const float mean_d_x = (mean[kAd] - walk.norm.mean_square * mean_d - n.mean_ax * mean_dx -
                          n.mean_ex * mean_d - mean_dx * n.mean_e) *
                         n.rstd;
  const float mean_d_x_x =
      (mean[kAdx] - n.mean_ax * mean_d - n.mean_axx * mean_dx - 2 * n.mean_ex * mean_dx) * n.rstd;
  const float outer = rate * n.rstd;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    float d_z[2], d_target[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float weight = walk.norm.weight[j][c];
      const float normal = x.z[j][2 * k + c];
      const float d = x.d_step[j][2 * k + c];
      const float residual = weight * normal + x.offset[j][2 * k + c];
      const float projected = d - mean_d - normal * mean_dx;
      const float d_e = projected * outer;
      const float d_residual = weight * d_e;
      walk.d_norm_weight[j][c] += d_e * residual + d_residual * normal;
      walk.d_norm_bias[j][c] += d_residual;
      const float d_x =
          (weight * (weight * projected - residual * mean_dx) - n.mean_ex * d) * n.rstd;
      d_z[c] = (d_x - mean_d_x - normal * (mean_d_x_x + mean_dg)) * outer;
      d_target[c] = -d_residual;
    }
    const std::uint32_t packed = pack_bf16(d_z[0], d_z[1]);
    put_word<F>(d_z_tile, at.g + 8 * k, 2 * at.warp + j, packed);
    d_z_t[2 * j + k] = movmatrix_transposed(packed);
    x.d_target[2 * j + k] = pack_bf16(d_target[0], d_target[1]);
  }
  return F * mean_dg;
}

// dW += q^T dZ' + k^T dZ, db += the sums over tokens.
template <int F>
__device__ __forceinline__ void add_to_state_gradient(const BackwardStage<F>& stage,
                                                      const std::uint32_t (&d_z_bar_t)[4],
                                                      const std::uint32_t (&d_z_t)[4],
                                                      LinearState<F>& d_state) {
  const std::uint32_t from_bar[4] = {d_z_bar_t[0], d_z_bar_t[2], d_z_bar_t[1], d_z_bar_t[3]};
  const std::uint32_t from_z[4] = {d_z_t[0], d_z_t[2], d_z_t[1], d_z_t[3]};
#pragma unroll
  for (int i = 0; i < F / 16; ++i) {
    std::uint32_t q_t[4], k_t[4];
    load_transposed<F>(q_t, stage.q, i);
    load_transposed<F>(k_t, stage.k, i);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum[4] = {};  // not dW itself: the tensor core truncates
      mma_m16n8k16(sum, from_bar, q_t[2 * half], q_t[2 * half + 1]);
      mma_m16n8k16(sum, from_z, k_t[2 * half], k_t[2 * half + 1]);
#pragma unroll
      for (int r = 0; r < 4; ++r) d_state.w[2 * i + half][r] += sum[r];
    }
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    float sum[4] = {};
    token_sums(sum, d_z_bar_t, j);
    token_sums(sum, d_z_t, j);
    d_state.b[j][0] += sum[0];
    d_state.b[j][1] += sum[1];
  }
}

// Warp 0's scores wait for phase 3 in shared memory, where each lane finds its own.
__device__ __forceinline__ void put_scores(float4* slots, const float (&scores)[2][4]) {
  const Lane at = this_lane();
  if (at.warp != 0) return;
  slots[at.lane] = float4{scores[0][0], scores[0][1], scores[0][2], scores[0][3]};
  slots[32 + at.lane] = float4{scores[1][0], scores[1][1], scores[1][2], scores[1][3]};
}

// dc_i = -sum_j dA_ij (q_i k_j + 1), with l_j in dA: the lane's columns.
__device__ __forceinline__ void add_scale_gradient(float (&d_scale)[2], const float4* slots,
                                                   const float (&d_scores)[2][4]) {
  const Lane at = this_lane();
  if (at.warp != 0) return;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float4 scores = slots[32 * j + at.lane];
    d_scale[0] -= d_scores[j][0] * scores.x + d_scores[j][1] * scores.y;
    d_scale[1] -= d_scores[j][2] * scores.z + d_scores[j][3] * scores.w;
  }
}

// Of the loops over 16 features below: at head dim 96 loads of all at once leave no registers.
template <int F>
constexpr int kBlocksAtOnce = F == 64 ? 4 : 2;

// dS = -c dZ' (l G)^T at j <= i, as an A fragment.
template <int F>
__device__ __forceinline__ void scores_backward(const BackwardStage<F>& stage,
                                                const std::byte* shared, const float* scales,
                                                float (&d_scale)[2], std::uint32_t (&d_s)[4]) {
  const Lane at = this_lane();
  [[maybe_unused]] constexpr int kUnroll = kBlocksAtOnce<F>;  // the emulator knows no pragmas
  float d_scores[2][4] = {};
#pragma unroll kUnroll
  for (int i = 0; i < F / 16; ++i) {
    std::uint32_t d_z_bar[4], step[4];
    load_rows<F>(d_z_bar, shared + BackwardMemory<F>::kDZBar, i);
    load_rows<F>(step, stage.step, i);
    mma_m16n8k16(d_scores[0], d_z_bar, step[0], step[2]);
    mma_m16n8k16(d_scores[1], d_z_bar, step[1], step[3]);
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      if (8 * j + 2 * at.t + (r & 1) > at.g + 8 * (r >> 1)) d_scores[j][r] = 0;
    }
  }
  add_scale_gradient(d_scale, reinterpret_cast<const float4*>(shared + BackwardMemory<F>::kScores),
                     d_scores);
  pack_steps(d_s, d_scores, scales);
}

// dq = d_out + dZ' W^T + dS k.
template <int F>
__device__ __forceinline__ void query_backward(const BackwardStage<F>& stage,
                                               const std::byte* shared, const std::byte* w_copy,
                                               const std::uint32_t (&d_s)[4],
                                               std::uint32_t (&packed)[4]) {
  const int warp = this_lane().warp;
  [[maybe_unused]] constexpr int kUnroll = kBlocksAtOnce<F>;  // the emulator knows no pragmas
  float d_q[2][4];
  std::uint32_t d_out[4], k_t[4];
  load_rows<F>(d_out, stage.d_out, warp);
  load_transposed<F>(k_t, stage.k, warp);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) d_q[j][r] = unpacked(d_out, j, r);
    mma_m16n8k16(d_q[j], d_s, k_t[2 * j], k_t[2 * j + 1]);
  }
#pragma unroll kUnroll
  for (int i = 0; i < F / 16; ++i) {
    std::uint32_t d_z_bar[4], w_t[4];
    load_rows<F>(d_z_bar, shared + BackwardMemory<F>::kDZBar, i);
    load_transposed<F>(w_t, w_copy, warp, 16 * i);
#pragma unroll
    for (int j = 0; j < 2; ++j) mma_m16n8k16(d_q[j], d_z_bar, w_t[2 * j], w_t[2 * j + 1]);
  }
  pack(packed, d_q);
}

// dk = -d_target + dZ W^T + dS^T q - c_r l G dW'^T.
template <int F>
__device__ __forceinline__ void key_backward(const BackwardStage<F>& stage, const std::byte* shared,
                                             const std::byte* w_copy, const std::byte* d_w_copy,
                                             float last_scale, const std::uint32_t (&d_s)[4],
                                             const std::uint32_t (&d_target)[4],
                                             std::uint32_t (&packed)[4]) {
  const int warp = this_lane().warp;
  [[maybe_unused]] constexpr int kUnroll = kBlocksAtOnce<F>;  // the emulator knows no pragmas
  float d_k[2][4] = {};
#pragma unroll kUnroll
  for (int i = 0; i < F / 16; ++i) {
    std::uint32_t step[4], d_w_t[4];
    load_rows<F>(step, stage.step, i);
    load_transposed<F>(d_w_t, d_w_copy, warp, 16 * i);
#pragma unroll
    for (int j = 0; j < 2; ++j) mma_m16n8k16(d_k[j], step, d_w_t[2 * j], d_w_t[2 * j + 1]);
  }
  std::uint32_t q_t[4], d_s_t[4];
  load_transposed<F>(q_t, stage.q, warp);
  transpose_matrix(d_s_t, d_s);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) d_k[j][r] = -last_scale * d_k[j][r] - unpacked(d_target, j, r);
    mma_m16n8k16(d_k[j], d_s_t, q_t[2 * j], q_t[2 * j + 1]);
  }
#pragma unroll kUnroll
  for (int i = 0; i < F / 16; ++i) {
    std::uint32_t d_z[4], w_t[4];
    load_rows<F>(d_z, shared + BackwardMemory<F>::kDZ, i);
    load_transposed<F>(w_t, w_copy, warp, 16 * i);
#pragma unroll
    for (int j = 0; j < 2; ++j) mma_m16n8k16(d_k[j], d_z, w_t[2 * j], w_t[2 * j + 1]);
  }
  pack(packed, d_k);
}

#endif

}  // namespace ttt::kernels::cuda::fused::linear_backward
