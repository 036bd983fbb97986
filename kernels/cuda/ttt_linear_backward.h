#pragma once
// The phases of one mini-batch in the fused backward of TTT-Linear; kernels/cuda/ttt_linear_backward.cu puts them
// together and has the story, kernels/cuda/ttt_fused.h the layouts, docs/numerics.md, "TTT" the equations.

#include "kernels/cuda/ttt_linear_walk.h"

namespace ttt::kernels::cuda::fused::linear_backward {

#if defined(__CUDACC__) || defined(TTT_SIMT_EMULATOR)

// Operands of W at in-features [16 i, 16 i + 16), as rows of W^T.
template <int F>
__device__ __forceinline__ void put_copy(std::byte* copy, int i, const uint2 (&w)[2]) {
  const Lane at = this_lane();
  std::byte* const own = copy + tile_offset<F>(16 * at.warp, 2 * i);
  if constexpr (kHasStmatrix) {
    stmatrix_x4(own + swapped_offset<F>(at.lane), {w[0].x, w[0].y, w[1].x, w[1].y});
  } else {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      std::byte* const row = own + tile_offset<F>(at.g + 8 * j, 0) + 4 * at.t;
      *reinterpret_cast<std::uint32_t*>(row) = w[j].x;
      *reinterpret_cast<std::uint32_t*>(row + 16) = w[j].y;
    }
  }
}

// Z, Z' without its step, U; and the operands' copies.
template <int F>
__device__ __forceinline__ void products(const BackwardStage<F>& stage, const Walk<F>& walk,
                                         std::byte* w_copy, std::byte* d_w_copy, Values& x) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      x.z[j][r] = x.z_bar[j][r] = walk.state.b[j][r & 1];
      x.update_read[j][r] = walk.d_state.b[j][r & 1];
    }
  }
#pragma unroll
  for (int i = 0; i < F / 16; ++i) {
    std::uint32_t k[4], q[4];
    load_rows<F>(k, stage.k, i);
    load_rows<F>(q, stage.q, i);
    uint2 w[2], d_w[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      w[j] = operand(walk.state.w, i, j);
      mma_m16n8k16(x.z[j], k, w[j].x, w[j].y);
      mma_m16n8k16(x.z_bar[j], q, w[j].x, w[j].y);
      d_w[j] = operand(walk.d_state.w, i, j);
      mma_m16n8k16(x.update_read[j], k, d_w[j].x, d_w[j].y);
    }
    put_copy<F>(w_copy, i, w);
    put_copy<F>(d_w_copy, i, d_w);
  }
}

// Completes Z' and sends off the sums of both LayerNorms.
template <int F>
__device__ __forceinline__ void read_and_sum(const BackwardStage<F>& stage, const Walk<F>& walk,
                                             const std::byte* shared,
                                             const std::uint32_t (&step_t)[4], float* buffer,
                                             Values& x) {
  std::uint32_t steps[4];
  get_fragment(steps, shared + BackwardMemory<F>::kSteps);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    mma_m16n8k16(x.z_bar[j], steps, step_t[2 * j], step_t[2 * j + 1]);
  }
  load_rows<F>(x.d_out, stage.d_out, this_lane().warp);
  key_minus_value<F>(x.offset, stage.k, stage.v);
  const auto* const beta = reinterpret_cast<const float*>(shared + BackwardMemory<F>::kBeta) +
                           16 * this_lane().warp + 2 * this_lane().t;
  float p[2][4];
  float sums[2][kBackwardSums] = {};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const auto bias = *reinterpret_cast<const float2*>(beta + 8 * j);  // not worth registers
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float weight = walk.norm.weight[j][r & 1];
      x.offset[j][r] += (r & 1) == 0 ? bias.x : bias.y;
      p[j][r] = weight * x.offset[j][r];
      const float h = weight * unpacked(x.d_out, j, r);
      sums[r >> 1][kH] += h;
      sums[r >> 1][kHBar] += h * x.z_bar[j][r];
    }
  }
  add_z_sums(sums, x.z, p, walk.norm);
  add_bar_sums(sums, x.z_bar);
  put_sums(sums, buffer);
}

// dZ': d_out through LN(Z').
template <int F>
__device__ __forceinline__ void output_norm_backward(const TokenTerms& terms,
                                                     std::byte* d_z_bar_tile, Walk<F>& walk,
                                                     Values& x) {
  std::uint32_t packed[4];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const float4 n =
        terms.first(this_lane().g + 8 * k);  // rstd; {mean h, mean h x} rstd; rstd of z
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float d_z_bar[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float d_out = unpacked(x.d_out, j, 2 * k + e);
        const float x_bar = x.z_bar[j][2 * k + e] * n.x;
        walk.d_norm_weight[j][e] += d_out * x_bar;
        walk.d_norm_bias[j][e] += d_out;
        d_z_bar[e] = walk.norm.weight[j][e] * d_out * n.x - n.y - x_bar * n.z;
      }
      packed[2 * j + k] = pack_bf16(d_z_bar[0], d_z_bar[1]);
    }
  }
  store_rows<F>(d_z_bar_tile, this_lane().warp, packed);
  __syncwarp();
  load_transposed<F>(x.d_z_bar_t, d_z_bar_tile, this_lane().warp);
}

// d(l G) and its sums; Z becomes x.
template <int F>
__device__ __forceinline__ void step_backward(const BackwardStage<F>& stage,
                                              const TokenTerms& terms,
                                              const std::byte* steps_t_fragment, float last_scale,
                                              float* buffer, Walk<F>& walk, Values& x) {
  std::uint32_t step[4], steps_t[4];
  load_rows<F>(step, stage.step, this_lane().warp);
  get_fragment(steps_t, steps_t_fragment);
  float sums[2][kStepSums] = {};
  const float rstd[2] = {terms.first(this_lane().g).w, terms.first(this_lane().g + 8).w};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      walk.d_last_scale -= unpacked(step, j, r) * x.update_read[j][r];
      x.d_step[j][r] = -last_scale * x.update_read[j][r];
    }
    mma_m16n8k16(x.d_step[j], steps_t, x.d_z_bar_t[2 * j], x.d_z_bar_t[2 * j + 1]);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      float(&sum)[kStepSums] = sums[r >> 1];
      x.z[j][r] *= rstd[r >> 1];
      const float weight = walk.norm.weight[j][r & 1];
      const float e = weight * (weight * x.z[j][r] + x.offset[j][r]);
      const float d = x.d_step[j][r];
      const float ad = walk.norm.square(j, r & 1) * d;
      sum[kD] += d;
      sum[kDx] += d * x.z[j][r];
      sum[kDe] += d * e;
      sum[kAd] += ad;
      sum[kAdx] += ad * x.z[j][r];
    }
  }
  put_sums(sums, buffer);
}

// What loss_gradient_backward needs of each token; returns the rate's gradient, complete in lanes of the first half.
template <int F>
__device__ __forceinline__ float put_step_terms(const TokenTerms& terms, const float* buffer,
                                                const TokenNorm& n, float rate,
                                                float gamma_square) {
  float mean[kStepSums];
  means_of_token<F>(mean, buffer);
  const float mean_dg = mean[kDe] - n.mean_e * mean[kD] - n.mean_ex * mean[kDx];  // times rstd
  // d_x = (a (d - mean_d - x mean_dx) - mean_ex d - mean_dx e) rstd: its means over features, and with x, over rstd.
  const float mean_d_x = mean[kAd] - gamma_square * mean[kD] - n.mean_ax * mean[kDx] -
                         n.mean_ex * mean[kD] - mean[kDx] * n.mean_e;
  const float mean_d_x_x =
      mean[kAdx] - n.mean_ax * mean[kD] - n.mean_axx * mean[kDx] - 2 * n.mean_ex * mean[kDx];
  const float outer = rate * n.rstd;
  terms.put({mean[kD], mean[kDx], n.mean_ex, outer},
            {mean_d_x, mean_d_x_x + mean_dg, n.rstd * outer, 0});
  return F * mean_dg * n.rstd;
}

// Through G = P(e) / s, a second derivative: dZ and d target from d(l G).
template <int F>
__device__ __forceinline__ void loss_gradient_backward(const TokenTerms& terms, std::byte* d_z_tile,
                                                       Walk<F>& walk, Values& x,
                                                       std::uint32_t (&d_z_t)[4]) {
  std::uint32_t packed[4];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const float4 n = terms.first(this_lane().g + 8 * k);
    const float4 m = terms.second(this_lane().g + 8 * k);
    const float mean_d = n.x, mean_dx = n.y, mean_ex = n.z, outer = n.w;
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
        const float d_x = weight * (weight * projected - residual * mean_dx) - mean_ex * d;
        d_z[c] = (d_x - m.x - normal * m.y) * m.z;
        d_target[c] = -d_residual;
      }
      packed[2 * j + k] = pack_bf16(d_z[0], d_z[1]);
      x.d_target[2 * j + k] = pack_bf16(d_target[0], d_target[1]);
    }
  }
  store_rows<F>(d_z_tile, this_lane().warp, packed);
  __syncwarp();
  load_transposed<F>(d_z_t, d_z_tile, this_lane().warp);
}

// dW += q^T dZ' + k^T dZ, db += the sums over tokens. `d_z_bar_t` and `d_z_t` have the tiles' own blocks transposed.
template <int F>
__device__ __forceinline__ void add_to_state_gradient(const BackwardStage<F>& stage,
                                                      const std::byte* shared,
                                                      const std::uint32_t (&d_z_bar_t)[4],
                                                      const std::uint32_t (&d_z_t)[4],
                                                      LinearState<F>& d_state) {
  std::uint32_t from_bar[4], from_z[4];
  load_transposed_swapped<F>(from_bar, shared + BackwardMemory<F>::kDZBar, this_lane().warp);
  load_transposed_swapped<F>(from_z, shared + BackwardMemory<F>::kDZ, this_lane().warp);
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

// The scores of an iteration and the step matrix -c (q k^T + 1) of its tokens, for all warps.
template <int F>
__device__ __forceinline__ void put_steps(std::byte* shared, int iteration, const float* scales) {
  using Memory = BackwardMemory<F>;
  const BackwardStage<F> stage(shared, iteration);
  float scores[2][4];
  scores_of<F>(scores, stage.q, stage.k);
  auto* const slots =
      reinterpret_cast<float4*>(shared + Memory::kScores + iteration % 2 * Memory::kScoresBytes) +
      this_lane().lane;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    slots[32 * j] = float4{scores[j][0], scores[j][1], scores[j][2], scores[j][3]};
  }
  std::uint32_t steps[4], steps_t[4];
  pack_steps(steps, scores, scales);
  put_fragment(shared + Memory::kSteps, steps);
  transpose_matrix(steps_t, steps);
  put_fragment(shared + Memory::kSteps + Layout<F>::kFragmentBytes, steps_t);
}

// Of the loops over 16 features below: at head dim 96 loads of all at once leave no registers.
template <int F>
constexpr int kBlocksAtOnce = F == 64 ? 4 : 2;

// dS = -c dZ' (l G)^T at j <= i, for all warps; dc_i = -sum_j dA_ij (q_i k_j + 1), with l_j in dA: the lane's
// columns, for token g and g + 8, since the start of the walk.
template <int F>
__device__ __forceinline__ void put_scores_gradient(const BackwardStage<F>& stage,
                                                    std::byte* shared, int iteration,
                                                    const float* scales) {
  using Memory = BackwardMemory<F>;
  const Lane at = this_lane();
  [[maybe_unused]] constexpr int kUnroll = kBlocksAtOnce<F>;  // the emulator knows no pragmas
  float d_scores[2][4] = {};
#pragma unroll kUnroll
  for (int i = 0; i < F / 16; ++i) {
    std::uint32_t d_z_bar[4], step[4];
    load_rows<F>(d_z_bar, shared + Memory::kDZBar, i);
    load_rows_swapped<F>(step, stage.step, i);
    mma_m16n8k16(d_scores[0], d_z_bar, step[0], step[1]);
    mma_m16n8k16(d_scores[1], d_z_bar, step[2], step[3]);
  }
  const auto* const slots = reinterpret_cast<const float4*>(shared + Memory::kScores +
                                                            iteration % 2 * Memory::kScoresBytes) +
                            at.lane;
  auto& d_scale = reinterpret_cast<float2*>(shared + Memory::kDScale)[threadIdx.x];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      if (8 * j + 2 * at.t + (r & 1) > at.g + 8 * (r >> 1)) d_scores[j][r] = 0;
    }
    const float4 scores = slots[32 * j];
    d_scale.x -= d_scores[j][0] * scores.x + d_scores[j][1] * scores.y;
    d_scale.y -= d_scores[j][2] * scores.z + d_scores[j][3] * scores.w;
  }
  std::uint32_t d_s[4], d_s_t[4];
  pack_steps(d_s, d_scores, scales);
  put_fragment(shared + Memory::kDScores, d_s);
  transpose_matrix(d_s_t, d_s);
  put_fragment(shared + Memory::kDScores + Layout<F>::kFragmentBytes, d_s_t);
}

// dq = d_out + dZ' W^T + dS k, dk = -d_target + dZ W^T + dS^T q - c_r l G dW'^T.
template <int F>
__device__ __forceinline__ void query_and_key_backward(
    const BackwardStage<F>& stage, const std::byte* shared, const std::byte* w_copy,
    const std::byte* d_w_copy, float last_scale, const std::uint32_t (&d_target)[4],
    std::uint32_t (&packed_q)[4], std::uint32_t (&packed_k)[4]) {
  using Memory = BackwardMemory<F>;
  const int warp = this_lane().warp;
  [[maybe_unused]] constexpr int kUnroll = kBlocksAtOnce<F>;  // the emulator knows no pragmas
  float d_q[2][4], d_k[2][4] = {};
#pragma unroll kUnroll
  for (int i = 0; i < F / 16; ++i) {
    std::uint32_t step[4], d_w_t[4];
    load_rows<F>(step, stage.step, i);
    load_transposed<F>(d_w_t, d_w_copy, warp, 16 * i);
#pragma unroll
    for (int j = 0; j < 2; ++j) mma_m16n8k16(d_k[j], step, d_w_t[2 * j], d_w_t[2 * j + 1]);
  }
  std::uint32_t d_out[4], k_t[4], q_t[4], d_s[4], d_s_t[4];
  load_rows<F>(d_out, stage.d_out, warp);
  load_transposed<F>(k_t, stage.k, warp);
  load_transposed<F>(q_t, stage.q, warp);
  get_fragment(d_s, shared + Memory::kDScores);
  get_fragment(d_s_t, shared + Memory::kDScores + Layout<F>::kFragmentBytes);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      d_q[j][r] = unpacked(d_out, j, r);
      d_k[j][r] = -last_scale * d_k[j][r] - unpacked(d_target, j, r);
    }
    mma_m16n8k16(d_q[j], d_s, k_t[2 * j], k_t[2 * j + 1]);
    mma_m16n8k16(d_k[j], d_s_t, q_t[2 * j], q_t[2 * j + 1]);
  }
#pragma unroll kUnroll
  for (int i = 0; i < F / 16; ++i) {
    std::uint32_t d_z_bar[4], d_z[4], w_t[4];
    load_rows<F>(d_z_bar, shared + Memory::kDZBar, i);
    load_rows<F>(d_z, shared + Memory::kDZ, i);
    load_transposed<F>(w_t, w_copy, warp, 16 * i);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      mma_m16n8k16(d_q[j], d_z_bar, w_t[2 * j], w_t[2 * j + 1]);
      mma_m16n8k16(d_k[j], d_z, w_t[2 * j], w_t[2 * j + 1]);
    }
  }
  pack(packed_q, d_q);
  pack(packed_k, d_k);
}

#endif

}  // namespace ttt::kernels::cuda::fused::linear_backward
