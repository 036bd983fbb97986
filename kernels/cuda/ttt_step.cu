// ttt_step of any shape (decoding, primal form) and ttt_inner_loss: one block of threads a (batch, head) pair.

#include "kernels/cuda/ops.h"
#include "kernels/cuda/ttt_generic_mlp.h"
#include "kernels/cuda/ttt_paths.h"

namespace ttt::kernels::cuda {
namespace generic {
namespace {

template <typename T>
struct StepCall {
  Extents e;  // with mini-batches of one token
  InputTensors<T> inputs;
  std::int64_t place;  // of the first token
  bool ends_mini_batch;
  StateTensors state, sums;
  T* out;
  float* scratch;
  std::int64_t floats_per_block;
};

/// to = state - factor * sums of one pair; `to` is packed.
__device__ void take_step(const Extents& e, const StateTensors& state, const StateTensors& sums,
                          std::int64_t pair, float factor, float* to) {
  for_each_member(e, [&](auto member, std::int64_t size) {
    const float* const from = state.*member + pair * size;
    const float* const sum = sums.*member + pair * size;
    for_each_index(size, [&](std::int64_t i) { to[i] = from[i] - factor * sum[i]; });
    to += size;
  });
}

/// Token by token W_i = W - c_i sums, out = q + LN(f(q; W_i)); a full mini-batch hands its last W_i on.
template <typename T, typename Learner>
__device__ void step_pair(const StepCall<T>& call, std::int64_t pair, ForwardWorker<Learner>& w) {
  const Extents& e = call.e;
  for (std::int64_t token = 0; token < e.tokens; ++token) {
    w.block.load(call.inputs, pair, token);
    w.learner.gradients(w.block, state_in(e, call.state, pair));
    w.learner.accumulate(w.block, state_in(e, call.sums, pair));
    take_step(e, call.state, call.sums, pair, w.block.scale[call.place + token], w.state);
    w.learner.evaluate(packed_state(e, w.state), 1, w.block.q, w.z);
    output(w.block.norm, 1, w.z, w.block.q, w.z);
    put_rows(e, 1, w.z, pair_rows(e, call.out, pair, token));
  }
  if (!call.ends_mini_batch) return;
  store_state(e, w.state, pair, call.state);
  for_each_member(e, [&](auto member, std::int64_t size) {
    clear_floats(size, call.sums.*member + pair * size);
  });
}

template <typename T, typename Learner>
__global__ void __launch_bounds__(kThreads, 1) step_kernel(StepCall<T> call) {
  for_each_pair<ForwardWorker<Learner>>(
      call, [&](std::int64_t pair, auto& worker) { step_pair(call, pair, worker); });
}

template <typename T>
struct LossCall {
  Extents e;
  InputTensors<T> inputs;
  StateTensors initial;
  double* losses;  // [3, B, T, H]
  float* scratch;
  std::int64_t floats_per_block;
};

/// Row `row` of losses for the mini-batch whose f(k) before the norm is w.z.
template <typename T, typename Learner>
__device__ void put_losses(const LossCall<T>& call, std::int64_t pair, std::int64_t index, int row,
                           ForwardWorker<Learner>& w) {
  const Extents& e = call.e;
  const std::int64_t token = index * e.mini_batch_size;
  const T* v = pair_rows(e, call.inputs.v, pair, token);
  double* losses = pair_tokens(e, call.losses + row * e.batch * e.tokens * e.heads, pair, token);
  output(w.block.norm, w.block.rows, w.z, w.block.k, w.z);
  for_each_row(w.block.rows, [&](std::int64_t i) {
    const double sum = row_sum(e.features, [&](std::int64_t j) {
      const double error = static_cast<double>(w.z.at(i, j)) -
                           static_cast<double>(load_float(v[i * e.heads * e.features + j]));
      return error * error;
    });
    if (this_lane() == 0) losses[i * e.heads] = 0.5 * sum;
  });
}

template <typename T, typename Learner>
__device__ void loss_pair(const LossCall<T>& call, std::int64_t pair, ForwardWorker<Learner>& w) {
  const Extents& e = call.e;
  load_state(e, call.initial, pair, w.state);
  const State state = packed_state(e, w.state);
  for (std::int64_t index = 0; index < e.num_blocks; ++index) {
    w.block.load(call.inputs, pair, index);
    w.learner.evaluate(state_in(e, call.initial, pair), w.block.rows, w.block.k, w.z);
    put_losses(call, pair, index, 0, w);
    w.learner.evaluate(state, w.block.rows, w.block.k, w.z);
    put_losses(call, pair, index, 1, w);
    w.learner.gradients(w.block, state);
    w.learner.read(w.block, state, w.block.k, w.z);  // k where q stood: f(k_t; W_t)
    put_losses(call, pair, index, 2, w);
    w.learner.update(w.block, state, state);
  }
}

template <typename T, typename Learner>
__global__ void __launch_bounds__(kThreads, 1) loss_kernel(LossCall<T> call) {
  for_each_pair<ForwardWorker<Learner>>(
      call, [&](std::int64_t pair, auto& worker) { loss_pair(call, pair, worker); });
}

}  // namespace
}  // namespace generic

void generic_step(const TttInputs& inputs, const TttOptions& options, std::int64_t place,
                  const TttState& state, const TttState& sums, TensorView out, Stream& stream) {
  // NOLINTNEXTLINE(google-build-using-namespace): its own internals
  using namespace generic;
  TttOptions token_by_token = options;
  token_by_token.mini_batch_size = 1;
  const Extents e = extents_of(inputs, token_by_token, state);
  visit_activation_type(inputs.q.dtype(), [&](auto zero) {
    using T = decltype(zero);
    visit_learner(e, [&](auto learner) {
      using Learner = decltype(learner);
      const Scratch scratch = Scratch::of<ForwardWorker<Learner>>(e);
      const StepCall<T> call{e,
                             tensors_of<T>(inputs),
                             place,
                             place + e.tokens == options.mini_batch_size,
                             tensors_of(state),
                             tensors_of(sums),
                             out.data<T>(),
                             scratch.memory.data<float>(),
                             scratch.floats_per_block};
      launch(step_kernel<T, Learner>, scratch.shape, stream, call);
    });
  });
}

void ttt_inner_loss(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                    TensorView losses, Stream& stream) {
  // NOLINTNEXTLINE(google-build-using-namespace): its own internals
  using namespace generic;
  const Extents e = extents_of(inputs, options, initial);
  visit_activation_type(inputs.q.dtype(), [&](auto zero) {
    using T = decltype(zero);
    visit_learner(e, [&](auto learner) {
      using Learner = decltype(learner);
      const Scratch scratch = Scratch::of<ForwardWorker<Learner>>(e);
      const LossCall<T> call{e,
                             tensors_of<T>(inputs),
                             tensors_of(initial),
                             losses.data<double>(),
                             scratch.memory.data<float>(),
                             scratch.floats_per_block};
      launch(loss_kernel<T, Learner>, scratch.shape, stream, call);
    });
  });
}

}  // namespace ttt::kernels::cuda
