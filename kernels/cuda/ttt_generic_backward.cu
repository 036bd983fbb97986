// ttt_backward of any shape and options: one block of threads a (batch, head) pair. Groups of mini-batches from the
// last to the first: from the checkpoint recompute the states of the group's mini-batches, then go backward over them.

#include "kernels/cuda/ttt_generic_mlp.h"
#include "kernels/cuda/ttt_paths.h"

namespace ttt::kernels::cuda {
namespace generic {
namespace {

template <typename Learner>
struct BackwardWorker {
  Block block;
  float* d_state;
  float* states;  // of the group's mini-batches
  Learner learner;
  Rows d_out, d_k, d_q, d_v;
  float* d_lr;

  BackwardWorker() = default;
  __host__ __device__ BackwardWorker(const Extents& e, Arena& arena)
      : block(e, arena),
        d_state(arena.vector(e.state_size())),
        states(arena.vector((e.group_size < e.num_blocks ? e.group_size : e.num_blocks) *
                            e.state_size())),
        learner(e, true, arena),
        d_out(arena.rows(e.block_rows, e.features)),
        d_k(arena.rows(e.block_rows, e.features)),
        d_q(arena.rows(e.block_rows, e.features)),
        d_v(arena.rows(e.block_rows, e.features)),
        d_lr(arena.vector(e.block_rows)) {}
};

/// Partial gradients of the tensors that pairs share, one row a pair.
struct SharedGradients {
  float *scale, *weight, *bias;  // [pairs, K], [pairs, F], [pairs, F]
};

/// TttInputGradients as a kernel takes them.
template <typename T>
struct GradientTensors {
  T *d_q, *d_k, *d_v;
  float* d_token_lr;
};

template <typename T>
struct BackwardCall {
  Extents e;
  InputTensors<T> inputs;
  const float* checkpoints;
  const T* d_out;
  StateTensors d_final;
  GradientTensors<T> gradients;
  StateTensors d_initial;
  SharedGradients shared;
  float* scratch;
  std::int64_t floats_per_block;
};

/// One mini-batch: gradients of its rows to the output tensors.
template <typename T, typename Learner>
__device__ void backward_block(const BackwardCall<T>& call, std::int64_t pair, std::int64_t index,
                               const State& state, const PairSums& sums,
                               BackwardWorker<Learner>& w) {
  const Extents& e = call.e;
  const std::int64_t token = index * e.mini_batch_size;
  w.block.load(call.inputs, pair, index);
  const std::int64_t r = w.block.rows;
  get_rows(e, r, pair_rows(e, call.d_out, pair, token), w.d_out);
  for_each_entry(r, e.features, [&](std::int64_t i, std::int64_t j) {
    w.d_q.at(i, j) = e.inner_norm ? w.d_out.at(i, j) : 0.0F;  // the residual: out = q + LN(Z')
    w.d_k.at(i, j) = 0.0F;
  });
  clear_floats(r, w.d_lr);
  w.learner.gradients(w.block, state);
  w.learner.backward(w.block, state, w.d_out, packed_state(e, w.d_state), {w.d_k, w.d_q, w.d_v},
                     sums);
  if (e.inner_norm) {  // the target is v - k
    for_each_entry(r, e.features,
                   [&](std::int64_t i, std::int64_t j) { w.d_k.at(i, j) -= w.d_v.at(i, j); });
  }
  put_rows(e, r, w.d_q, pair_rows(e, call.gradients.d_q, pair, token));
  put_rows(e, r, w.d_k, pair_rows(e, call.gradients.d_k, pair, token));
  put_rows(e, r, w.d_v, pair_rows(e, call.gradients.d_v, pair, token));
  float* d_token_lr = pair_tokens(e, call.gradients.d_token_lr, pair, token);
  for_each_index(r, [&](std::int64_t i) { d_token_lr[i * e.heads] = w.d_lr[i]; });
}

template <typename T, typename Learner>
__device__ void backward_pair(const BackwardCall<T>& call, std::int64_t pair,
                              BackwardWorker<Learner>& w) {
  const Extents& e = call.e;
  const PairSums sums{
      w.d_lr,
      call.shared.scale + pair * e.mini_batch_size,
      {call.shared.weight + pair * e.features, call.shared.bias + pair * e.features}};
  clear_floats(e.mini_batch_size, sums.d_scale);
  clear_floats(e.features, sums.norm.d_weight);
  clear_floats(e.features, sums.norm.d_bias);
  load_state(e, call.d_final, pair, w.d_state);
  const auto state_of = [&](std::int64_t i) {
    return packed_state(e, w.states + i * e.state_size());
  };
  for (std::int64_t group = e.num_groups() - 1; group >= 0; --group) {
    const std::int64_t begin = group * e.group_size;
    const std::int64_t rest = e.num_blocks - begin;
    const std::int64_t count = rest < e.group_size ? rest : e.group_size;
    copy_floats(e.state_size(), call.checkpoints + (pair * e.num_groups() + group) * e.state_size(),
                w.states);
    for (std::int64_t i = 0; i + 1 < count; ++i) {
      w.block.load(call.inputs, pair, begin + i);
      w.learner.gradients(w.block, state_of(i));
      w.learner.update(w.block, state_of(i), state_of(i + 1));
    }
    for (std::int64_t i = count - 1; i >= 0; --i) {
      backward_block(call, pair, begin + i, state_of(i), sums, w);
    }
  }
  store_state(e, w.d_state, pair, call.d_initial);
}

template <typename T, typename Learner>
__global__ void __launch_bounds__(kThreads, 1) backward_kernel(BackwardCall<T> call) {
  for_each_pair<BackwardWorker<Learner>>(
      call, [&](std::int64_t pair, auto& worker) { backward_pair(call, pair, worker); });
}

/// to[i] += the sum over `count` rows of from[i], in their order.
__device__ void add_rows(std::int64_t count, std::int64_t stride, const float* from, float* to) {
  float sum = 0.0F;
  for (std::int64_t n = 0; n < count; ++n) sum += from[n * stride];
  *to += sum;
}

/// Adds the partials in the order of the pairs. norm_weight and norm_bias are null without inner_norm.
__global__ void __launch_bounds__(kThreads)
    add_shared_kernel(Extents e, SharedGradients shared, float* d_token_scale, float* d_norm_weight,
                      float* d_norm_bias) {
  for_each_element(e.mini_batch_size, [&](std::int64_t i) {
    add_rows(e.num_pairs(), e.mini_batch_size, shared.scale + i, d_token_scale + i);
  });
  if (!e.inner_norm) return;
  const std::int64_t size = e.heads * e.features;  // of one sequence
  for_each_element(size, [&](std::int64_t i) {
    add_rows(e.batch, size, shared.weight + i, d_norm_weight + i);
    add_rows(e.batch, size, shared.bias + i, d_norm_bias + i);
  });
}

}  // namespace
}  // namespace generic

void generic_backward(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                      const TttSaved& saved, TensorView d_out, const TttState& d_final,
                      const TttInputGradients& gradients, const TttState& d_initial,
                      Stream& stream) {
  // NOLINTNEXTLINE(google-build-using-namespace): its own internals
  using namespace generic;
  const Extents e = extents_of(inputs, options, initial);
  expect_shape("saved.checkpoints", saved.checkpoints,
               {e.batch, e.heads, e.num_groups(), e.state_size()});
  const Tensor scale({e.num_pairs(), e.mini_batch_size}, DType::kF32);
  const Tensor weight({e.num_pairs(), e.features}, DType::kF32);
  const Tensor bias({e.num_pairs(), e.features}, DType::kF32);
  const SharedGradients shared{scale.data<float>(), weight.data<float>(), bias.data<float>()};
  visit_activation_type(inputs.q.dtype(), [&](auto zero) {
    using T = decltype(zero);
    visit_learner(e, [&](auto learner) {
      using Learner = decltype(learner);
      const Scratch scratch = Scratch::of<BackwardWorker<Learner>>(e);
      const BackwardCall<T> call{e,
                                 tensors_of<T>(inputs),
                                 saved.checkpoints.data<float>(),
                                 d_out.data<T>(),
                                 tensors_of(d_final),
                                 {gradients.d_q.data<T>(), gradients.d_k.data<T>(),
                                  gradients.d_v.data<T>(), floats_of(gradients.d_token_lr)},
                                 tensors_of(d_initial),
                                 shared,
                                 scratch.memory.data<float>(),
                                 scratch.floats_per_block};
      launch(backward_kernel<T, Learner>, scratch.shape, stream, call);
    });
  });
  launch(add_shared_kernel, elementwise_shape(std::max(e.mini_batch_size, e.heads * e.features)),
         stream, e, shared, floats_of(gradients.d_token_scale), floats_of(gradients.d_norm_weight),
         floats_of(gradients.d_norm_bias));
}

}  // namespace ttt::kernels::cuda
