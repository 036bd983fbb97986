#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ttt_mlp_backward.h"
#include "kernels/cuda/ttt_mlp_backward_phases.h"
#include "kernels/cuda/ttt_paths.h"

namespace ttt::kernels::cuda {
namespace mlp {

__device__ __forceinline__ void Backward::load_stage() const {
  const std::int64_t row = pair.row(begin);
  const int thread = static_cast<int>(threadIdx.x) % kSliceThreads;
  // Each slice loads its tile of g1 and one or two of the others.
  load_tile(g1_tile(), arguments.hidden_step_gradients + row * kSlices + at.slice * kFeatures,
            pair.stride * kSlices, count(), thread);
  if (at.slice == 0) load_tile(tile(Layout::kK), in.k + row, pair.stride, count(), thread);
  if (at.slice == 1) load_tile(tile(Layout::kQ), in.q + row, pair.stride, count(), thread);
  if (at.slice == 2) {
    load_tile(tile(Layout::kG2), arguments.step_gradients + row, pair.stride, count(), thread);
    load_tile(tile(Layout::kV), in.v + row, pair.stride, count(), thread);
  }
  if (at.slice == 3) {
    load_tile(tile(Layout::kDOut), arguments.d_out + row, pair.stride, count(), thread);
    if (thread < kTokens) {
      load_rates(floats(Layout::kRates), in.token_lr + row / kFeatures, in.num_heads, count(),
                 thread);
    }
  }
  copy_async_commit();
}

__device__ __forceinline__ void Backward::load_state() {
  const StatePointers& from = arguments.checkpoint;
  const StatePointers& d_from = arguments.d_final;
  const bool has_d_final = d_from.w1 != nullptr;
  const std::int64_t w1_begin = std::int64_t{pair.index} * kFeatures * kHidden + at.first_hidden();
  const std::int64_t w2_begin =
      (std::int64_t{pair.index} * kHidden + at.slice * 64) * kFeatures + at.first_output();
  for_each_state_element(at, [&](int tile, int i, int row, int column) {
    w1[tile][i] = from.w1[w1_begin + column * kHidden + row];
    w2[tile][i] = from.w2[w2_begin + column * kFeatures + row];
  });
  for_each_own_gradient([&](std::int64_t i1, std::int64_t i2, int place) {
    wide(Layout::kDW1)[place] = has_d_final ? d_from.w1[w1_begin + i1] : 0.0F;
    wide(Layout::kDW2)[place] = has_d_final ? d_from.w2[w2_begin + i2] : 0.0F;
  });
  const std::int64_t b1_place =
      std::int64_t{pair.index} * kHidden + at.first_hidden() + at.lane % 16;
  const bool has_bias = at.lane < 16 || has_d_final;
  biases = has_bias ? (at.lane < 16 ? from.b1 : d_from.b1)[b1_place] : 0.0F;
  if (threadIdx.x < kFeatures) {
    const std::int64_t index = pair.index * kFeatures + threadIdx.x;
    floats(Layout::kB2)[threadIdx.x] = from.b2[index];
    floats(Layout::kDB2)[threadIdx.x] = has_d_final ? d_from.b2[index] : 0.0F;
  }
}

__device__ __forceinline__ void Backward::store_state() const {
  const StatePointers& to = arguments.d_initial;
  const std::int64_t w1_begin = std::int64_t{pair.index} * kFeatures * kHidden + at.first_hidden();
  const std::int64_t w2_begin =
      (std::int64_t{pair.index} * kHidden + at.slice * 64) * kFeatures + at.first_output();
  for_each_own_gradient([&](std::int64_t i1, std::int64_t i2, int place) {
    to.w1[w1_begin + i1] = wide(Layout::kDW1)[place];
    to.w2[w2_begin + i2] = wide(Layout::kDW2)[place];
  });
  if (at.lane >= 16) {
    to.b1[std::int64_t{pair.index} * kHidden + at.first_hidden() + at.lane - 16] = biases;
  }
  if (threadIdx.x < kFeatures) {
    to.b2[pair.index * kFeatures + threadIdx.x] = floats(Layout::kDB2)[threadIdx.x];
  }
}

/// This pair's part of the parameters' gradients, all in a fixed order.
__device__ __forceinline__ void Backward::store_sums() {
  // The matrices' area is free by now.
  float* const norms = floats(Layout::kMatrix);               // [token][2][64]
  float* const row_scales = norms + kTokens * 2 * kFeatures;  // [slice][16]
  float* const steps = row_scales + kSlices * kTokens;        // [warp]
  for (int e = 0; e < 2; ++e) {
    norms[at.token * 2 * kFeatures + 2 * at.lane + e] = d_weight[e];
    norms[(at.token * 2 + 1) * kFeatures + 2 * at.lane + e] = d_bias[e];
  }
  for (int mask = 1; mask < 4; mask *= 2) {
    for (int k = 0; k < 2; ++k) d_scale[k] += __shfl_xor_sync(kAllLanes, d_scale[k], mask);
  }
  if (at.quarter == 0 && at.t == 0) {
    for (int k = 0; k < 2; ++k) row_scales[at.slice * kTokens + at.g + 8 * k] = d_scale[k];
  }
  float sum[1] = {d_step};
  sum_over_warp(sum);
  if (at.lane == 0) steps[at.token] = sum[0];
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 2 * kFeatures) {
    float total = 0;
    for (int token = 0; token < kTokens; ++token) total += norms[token * 2 * kFeatures + thread];
    arguments.d_norm[pair.index * 2 * kFeatures + thread] = total;
  }
  if (thread < kTokens) {
    float total = 0;
    for (int slice = 0; slice < kSlices; ++slice) total += row_scales[slice * kTokens + thread];
    // The state's step is taken with the scale of the mini-batch's last token.
    const int last = (in.num_tokens - 1) % kTokens;
    for (int warp = 0; warp < kTokens; ++warp) {
      if (thread == kTokens - 1) total += steps[warp];
      if (thread == last && last != kTokens - 1) total += floats(Layout::kShortSteps)[warp];
    }
    arguments.d_token_scale[pair.index * kTokens + thread] = total;
  }
}

__device__ __forceinline__ void Backward::run() {
  begin = (in.num_tokens - 1) / kTokens * kTokens;
  load_stage();
  load_state();
  copy_async_wait<0>();
  __syncthreads();
#pragma unroll 1
  while (begin >= 0) {
    begin_phase();
    restore_hidden();
    slice_barrier(at);
    begin_phase();
    restore_output();
    __syncthreads();
    begin_phase();
    output_rows();
    __syncthreads();
    begin_phase();
    hidden_gradients();
    slice_barrier(at);
    begin_phase();
    send_step_gradient();
    __syncthreads();
    begin_phase();
    inner_rows();
    __syncthreads();
    begin_phase();
    state_gradients();
    slice_barrier(at);
    begin_phase();
    hidden_state_gradients();
    slice_barrier(at);
    begin_phase();
    send_input_gradients();
    __syncthreads();
    const std::int64_t row = owned_row();
    const bool is_token = at.token < count();
    if (count() < kTokens) {  // only the sequence's end: its step has another scale than all others
      float sum[1] = {d_step};
      sum_over_warp(sum);
      if (at.lane == 0) floats(Layout::kShortSteps)[at.token] = sum[0];
      d_step = 0;
    }
    begin -= kTokens;
    if (begin >= 0) load_stage();
    input_rows(row, is_token);
    copy_async_wait<0>();
    __syncthreads();
  }
  store_state();
  store_sums();
}

namespace {

__global__ void __launch_bounds__(BackwardLayout::kThreads, 1)
    backward_kernel(BackwardArguments arguments) {
  Backward(arguments, dynamic_shared_memory()).run();
}

/// d_weight and d_bias [H, 64] += the batch's parts, in order.
__global__ void add_norm_kernel(const float* parts, float* d_weight, float* d_bias,
                                std::int64_t batch, std::int64_t num_heads) {
  for_each_element(num_heads * 2 * kFeatures, [&](std::int64_t i) {
    const std::int64_t head = i / (2 * kFeatures);
    const std::int64_t column = i % (2 * kFeatures);
    float total = 0;
    for (std::int64_t b = 0; b < batch; ++b) total += parts[b * num_heads * 2 * kFeatures + i];
    float* const to = column < kFeatures ? d_weight + column : d_bias + (column - kFeatures);
    to[head * kFeatures] += total;
  });
}

/// d_token_scale [16] += the pairs' parts: warp i sums those of token i.
__global__ void __launch_bounds__(kTokens * 32)
    add_scale_kernel(const float* parts, float* d_token_scale, std::int64_t num_pairs) {
  const int token = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float total[1] = {};
  for (std::int64_t pair = lane; pair < num_pairs; pair += 32) {
    total[0] += parts[pair * kTokens + token];
  }
  sum_over_warp(total);
  if (lane == 0) d_token_scale[token] += total[0];
}

}  // namespace
}  // namespace mlp

void fused_mlp_backward(const TttInputs& inputs, const TttState& /*initial*/, const TttSaved& saved,
                        TensorView d_out, const TttState& d_final,
                        const TttInputGradients& gradients, const TttState& d_initial,
                        Stream& stream) {
  const std::int64_t batch = inputs.q.size(0);
  const std::int64_t num_heads = inputs.q.size(2);
  const std::int64_t num_pairs = batch * num_heads;
  const Tensor d_token_scale({num_pairs, mlp::kTokens}, DType::kF32);
  const Tensor d_norm({num_pairs, 2, mlp::kFeatures}, DType::kF32);
  mlp::BackwardArguments arguments{};
  arguments.inputs = mlp::pointers(inputs);
  arguments.d_out = d_out.data<BFloat16>();
  arguments.step_gradients = saved.step_gradients.data<BFloat16>();
  arguments.hidden_step_gradients = saved.hidden_step_gradients.data<BFloat16>();
  arguments.checkpoint = mlp::pointers(saved.checkpoints, num_pairs);
  arguments.d_final = mlp::pointers(d_final);
  arguments.d_initial = mlp::pointers(d_initial);
  arguments.d_q = gradients.d_q.data<BFloat16>();
  arguments.d_k = gradients.d_k.data<BFloat16>();
  arguments.d_v = gradients.d_v.data<BFloat16>();
  arguments.d_token_lr = gradients.d_token_lr.data<float>();
  arguments.d_token_scale = d_token_scale.data<float>();
  arguments.d_norm = d_norm.data<float>();
  using Layout = mlp::BackwardLayout;
  launch(mlp::backward_kernel,
         {dim3(static_cast<unsigned>(num_pairs)), dim3(Layout::kThreads), Layout::kBytes}, stream,
         arguments);
  launch(mlp::add_norm_kernel, elementwise_shape(num_heads * 2 * mlp::kFeatures), stream,
         d_norm.data<float>(), gradients.d_norm_weight.data<float>(),
         gradients.d_norm_bias.data<float>(), batch, num_heads);
  launch(mlp::add_scale_kernel, {dim3(1), dim3(mlp::kTokens * 32)}, stream,
         d_token_scale.data<float>(), gradients.d_token_scale.data<float>(), num_pairs);
}

}  // namespace ttt::kernels::cuda
