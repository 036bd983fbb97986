// ttt_forward of any shape and options: one block of threads a (batch, head) pair, mini-batches in order.

#include "kernels/cuda/ttt_generic_mlp.h"
#include "kernels/cuda/ttt_paths.h"

namespace ttt::kernels::cuda {
namespace generic {
namespace {

template <typename T>
struct ForwardCall {
  Extents e;
  InputTensors<T> inputs;
  StateTensors initial, final_state;
  T* out;
  float* checkpoints;  // null when no backward follows
  float* scratch;
  std::int64_t floats_per_block;
};

template <typename T, typename Learner>
__device__ void forward_pair(const ForwardCall<T>& call, std::int64_t pair,
                             ForwardWorker<Learner>& w) {
  const Extents& e = call.e;
  load_state(e, call.initial, pair, w.state);
  const State state = packed_state(e, w.state);
  for (std::int64_t index = 0; index < e.num_blocks; ++index) {
    if (call.checkpoints != nullptr && index % e.group_size == 0) {
      const std::int64_t group = pair * e.num_groups() + index / e.group_size;
      copy_floats(e.state_size(), w.state, call.checkpoints + group * e.state_size());
    }
    w.block.load(call.inputs, pair, index);
    w.learner.gradients(w.block, state);
    w.learner.read(w.block, state, w.block.q, w.z);
    output(w.block.norm, w.block.rows, w.z, w.block.q, w.z);
    put_rows(e, w.block.rows, w.z, pair_rows(e, call.out, pair, index * e.mini_batch_size));
    w.learner.update(w.block, state, state);
  }
  store_state(e, w.state, pair, call.final_state);
}

template <typename T, typename Learner>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(ForwardCall<T> call) {
  for_each_pair<ForwardWorker<Learner>>(
      call, [&](std::int64_t pair, auto& worker) { forward_pair(call, pair, worker); });
}

}  // namespace
}  // namespace generic

void generic_forward(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                     TensorView out, const TttState& final_state, TttSaved* saved, Stream& stream) {
  // NOLINTNEXTLINE(google-build-using-namespace): its own internals
  using namespace generic;
  const Extents e = extents_of(inputs, options, initial);
  float* checkpoints = nullptr;
  if (saved != nullptr) {
    saved->checkpoints = Tensor({e.batch, e.heads, e.num_groups(), e.state_size()}, DType::kF32);
    checkpoints = saved->checkpoints.data<float>();
  }
  visit_activation_type(inputs.q.dtype(), [&](auto zero) {
    using T = decltype(zero);
    visit_learner(e, [&](auto learner) {
      using Learner = decltype(learner);
      const Scratch scratch = Scratch::of<ForwardWorker<Learner>>(e);
      const ForwardCall<T> call{e,
                                tensors_of<T>(inputs),
                                tensors_of(initial),
                                tensors_of(final_state),
                                out.data<T>(),
                                checkpoints,
                                scratch.memory.data<float>(),
                                scratch.floats_per_block};
      launch(forward_kernel<T, Learner>, scratch.shape, stream, call);
    });
  });
}

}  // namespace ttt::kernels::cuda
