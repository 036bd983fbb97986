#include "kernels/cuda/ttt_mlp_backward.h"
#include "kernels/cuda/ttt_mlp_backward_phases.h"
#include "kernels/cuda/ttt_partials.h"
#include "kernels/cuda/ttt_paths.h"

namespace ttt::kernels::cuda {
namespace mlp {

/// Before the first mini-batch an empty group, so that every mini-batch is one group.
template <int F>
__device__ __forceinline__ void Backward<F>::load_stage() const {
  if (m >= 0) {
    const BackwardStage s = stage();
    const auto thread = static_cast<int>(threadIdx.x);
    const TileCopy<F> copy(rows, m, F, thread);
    copy(s.k, in.k);
    copy(s.q, in.q);
    copy(s.v, in.v);
    copy(s.d_out, arguments.d_out);
    copy(s.g2, arguments.step_gradients);
    TileCopy<F>(rows, m, kHidden<F>, thread)(s.g1, arguments.hidden_step_gradients + at.slice * F);
    fused::copy_rates_async(s.rates, in.token_lr, rows, m);
  }
  copy_async_commit();
}

template <int F>
__device__ __forceinline__ void Backward<F>::load_state() {
  const StatePointers& from = arguments.checkpoint;
  const StatePointers& d_from = arguments.d_final;
  const bool has_d_final = d_from.w1 != nullptr;
  for_each_state_element(at, [&](int tile, int i, int row, int column) {
    w1[tile][i] = from.w1[first_w1() + column * kHidden<F> + row];
    w2[tile][i] = from.w2[first_w2() + column * F + row];
  });
  for_each_own_gradient([&](int i1, int i2, int place) {
    floats(L::kDW1)[place] = has_d_final ? d_from.w1[first_w1() + i1] : 0.0F;
    floats(L::kDW2)[place] = has_d_final ? d_from.w2[first_w2() + i2] : 0.0F;
  });
  if (at.owns_token()) {
    for (int e = 0; e < kLaneFeatures<F>; ++e) owned().d_weight[e] = owned().d_bias[e] = 0;
  }
  if (threadIdx.x < F) {
    const auto place = static_cast<int>(threadIdx.x);
    const std::int64_t i1 = std::int64_t{pair} * kHidden<F> + at.slice * F + place;
    const std::int64_t i2 = std::int64_t{pair} * F + place;
    floats(L::kB1)[place] = from.b1[i1];
    floats(L::kB2)[place] = from.b2[i2];
    floats(L::kGamma)[place] = in.norm_weight[pair % in.heads * F + place];
    floats(L::kBeta)[place] = in.norm_bias[pair % in.heads * F + place];
    floats(L::kDB1)[place] = has_d_final ? d_from.b1[i1] : 0.0F;
    floats(L::kDB2)[place] = has_d_final ? d_from.b2[i2] : 0.0F;
  }
  const std::int64_t head = pair % in.heads;
  const float mean_square =
      LaneNorm<F>(in.norm_weight + head * F, in.norm_bias + head * F, at.lane).mean_square();
  if (threadIdx.x == 0) floats(L::kMeanSquare)[0] = mean_square;
}

template <int F>
__device__ __forceinline__ void Backward<F>::store_state() const {
  const StatePointers& to = arguments.d_initial;
  for_each_own_gradient([&](int i1, int i2, int place) {
    to.w1[first_w1() + i1] = floats(L::kDW1)[place];
    to.w2[first_w2() + i2] = floats(L::kDW2)[place];
  });
  if (threadIdx.x < F) {
    const auto place = static_cast<int>(threadIdx.x);
    to.b1[std::int64_t{pair} * kHidden<F> + at.slice * F + place] = floats(L::kDB1)[place];
    if (at.slice == 0) to.b2[std::int64_t{pair} * F + place] = floats(L::kDB2)[place];
  }
}

/// This slice's part of the parameters' gradients, all in a fixed order.
template <int F>
__device__ __forceinline__ void Backward<F>::store_sums() {
  // The matrix's area is free by now.
  float* const norms = floats(L::kMatrix);            // [owner][2][F]
  float* const steps = norms + kOwnedTokens * 2 * F;  // [warp][2]: whole mini-batches, a short one
  float* const scales = steps + 2 * Layout<F>::kWarps;  // [warp][16]
  if (at.owns_token()) {
    for_each_pair<F>(at.lane, [&](int i, int feature) {
      for (int e = 0; e < 2; ++e) {
        norms[at.warp * 2 * F + feature + e] = owned().d_weight[2 * i + e];
        norms[(at.warp * 2 + 1) * F + feature + e] = owned().d_bias[2 * i + e];
      }
    });
  }
  float sums[2] = {d_step, d_short_step};
  sum_over_warp(sums);
  for (int k = 0; k < 2; ++k) {
    for (int mask = 1; mask < 4; mask *= 2) {
      d_scale[k] += __shfl_xor_sync(kAllLanes, d_scale[k], mask);
    }
    if (at.lane == 0) steps[2 * at.warp + k] = sums[k];
    if (at.t == 0) scales[kTokens * at.warp + at.g + 8 * k] = d_scale[k];
  }
  __syncthreads();
  float* const to = arguments.partials + std::int64_t{blockIdx.x} * fused::partial_size(F);
  for (int i = static_cast<int>(threadIdx.x); i < 2 * F; i += Layout<F>::kThreads) {
    float total = 0;
    for (int owner = 0; owner < kOwnedTokens; ++owner) total += norms[owner * 2 * F + i];
    to[kTokens + i] = total;
  }
  if (threadIdx.x >= kTokens) return;
  // The state's step is taken with the scale of the mini-batch's last token.
  const auto token = static_cast<int>(threadIdx.x);
  const int last = (in.tokens - 1) % kTokens;
  float total = 0;
  for (int warp = 0; warp < Layout<F>::kWarps; ++warp) {
    total += scales[kTokens * warp + token];
    if (token == kTokens - 1) total += steps[2 * warp];
    if (token == last) total += steps[2 * warp + 1];
  }
  to[token] = total;
}

template <int F>
__device__ __forceinline__ void Backward<F>::run() {
  for (m = rows.num_mini_batches() - 1; m >= rows.num_mini_batches() - L::kStages; --m) {
    load_stage();
  }
  load_state();
  copy_async_wait<L::kStages - 1>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kMailboxes; ++i) open_mailbox(mail(static_cast<BackwardMail>(i)));
  }
  cluster_barrier();  // also: every block has started before anyone sends to it
#pragma unroll 1
  for (m = rows.num_mini_batches() - 1; m >= 0; ++phase) {
    const BackwardStage s = stage();
    begin_phase();
    restore_hidden(s);
    __syncthreads();
    begin_phase();
    restore_output(s);
    receive(mail(kOutputSums), phase, 2 * kPartialsMail<F>);
    begin_phase();
    output_rows(s);
    receive(mail(kOutputRows), phase, kRowsMail<F>);
    begin_phase();
    hidden_gradients(s);
    __syncthreads();
    begin_phase();
    send_step_gradient(s);
    receive(mail(kStepSums), phase, kPartialsMail<F>);
    begin_phase();
    inner_rows(s);
    receive(mail(kInnerRows), phase, kRowsMail<F>);
    begin_phase();
    state_gradients(s);
    __syncthreads();
    begin_phase();
    hidden_state_gradients(s);
    __syncthreads();
    begin_phase();
    send_input_gradients(s);
    receive(mail(kInputSums), phase, 2 * kPartialsMail<F>);
    begin_phase();
    input_rows();
    if (rows.count(m) <
        kTokens) {  // only the sequence's end: its step has another scale than all others
      d_short_step = d_step;
      d_step = 0;
    }
    copy_async_wait<L::kStages - 2>();
    __syncthreads();  // the next stage is there, this one is free
    m -= L::kStages;
    load_stage();
    m += L::kStages - 1;
  }
  store_state();
  store_sums();
}

namespace {

template <int F>
__global__ void __launch_bounds__(Layout<F>::kThreads, F == 64 ? 2 : 1)
    backward_kernel(BackwardArguments arguments) {
  if constexpr (kHasClusters) {
    Backward<F>(arguments, dynamic_shared_memory()).run();
  } else {
    stop_without_clusters();
  }
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
  fused::expect_countable_rows(inputs.q);
  fused::visit_head_dim(inputs.q.size(3), [&](auto head_dim) {
    constexpr int F = decltype(head_dim)::value;
    static_assert(mlp::BackwardLayout<F>::kBytes == fused_shared_bytes(InnerModel::kMlp, F));
    const Tensor partials({batch, num_heads, mlp::kSlices, fused::partial_size(F)}, DType::kF32);
    mlp::BackwardArguments arguments{};
    arguments.in = mlp::pointers(inputs);
    arguments.d_out = d_out.data<BFloat16>();
    arguments.step_gradients = saved.step_gradients.data<BFloat16>();
    arguments.hidden_step_gradients = saved.hidden_step_gradients.data<BFloat16>();
    arguments.checkpoint = mlp::pointers<F>(saved.checkpoints, num_pairs);
    arguments.d_final = mlp::pointers(d_final);
    arguments.d_initial = mlp::pointers(d_initial);
    arguments.d_q = gradients.d_q.data<BFloat16>();
    arguments.d_k = gradients.d_k.data<BFloat16>();
    arguments.d_v = gradients.d_v.data<BFloat16>();
    arguments.d_token_lr = gradients.d_token_lr.data<float>();
    arguments.partials = partials.data<float>();
    launch(mlp::backward_kernel<F>,
           {dim3(static_cast<unsigned>(num_pairs * mlp::kSlices)),
            dim3(static_cast<unsigned>(fused::Layout<F>::kThreads)), mlp::BackwardLayout<F>::kBytes,
            mlp::kSlices},
           stream, arguments);
    fused::add_partials(partials, gradients, stream);
  });
}

}  // namespace ttt::kernels::cuda
