// ttt_forward and ttt_backward on the CPU: one thread per (batch, head) pair, mini-batches in order.
//
// Forward keeps the state at the start of every group of mini-batches; backward walks the groups from the last to the
// first, recomputes a group's states and loss gradients into tapes, and goes backward over them.

#include "kernels/ttt.h"

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/ttt_call.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace ttt_cpu {
namespace {

/// Scratch rows into mini-batch `index` of a [B, T, H, F] tensor, and back.
template <typename T>
void put_rows(const Extents& e, std::int64_t count, Rows<T> rows, std::int64_t pair,
              std::int64_t index, const TensorView& view) {
  T* first = pair_rows<T>(e, view, pair, index * e.mini_batch_size);
  copy_rows(count, e.features, rows.data, rows.stride, first, e.heads * e.features);
}

template <typename T>
void get_rows(const Extents& e, std::int64_t count, const TensorView& view, std::int64_t pair,
              std::int64_t index, Rows<T> rows) {
  const T* first = pair_rows<T>(e, view, pair, index * e.mini_batch_size);
  copy_rows(count, e.features, first, e.heads * e.features, rows.data, rows.stride);
}

template <typename T, typename Learner>
struct ForwardWorker {
  Arena<T> arena;
  Block<T> block;
  State<T> state;
  Tape<T> tape;
  Learner learner;
  Rows<T> out;

  explicit ForwardWorker(const Extents& e)
      : block(e, arena),
        state(e, arena),
        tape(e, arena),
        learner(e, false, arena),
        out(arena.rows(e.block_rows, e.features)) {}
};

template <typename T, typename Learner>
void forward_pair(const Extents& e, const TttInputs& inputs, const TttState& initial,
                  const TensorView& out, const TttState& final_state, T* checkpoints,
                  std::int64_t pair, ForwardWorker<T, Learner>& w) {
  load_state(e, initial, pair, w.state);
  w.block.load_head(e, inputs, pair);
  for (std::int64_t index = 0; index < e.num_blocks(); ++index) {
    if (checkpoints != nullptr && index % e.group_size() == 0) {
      const std::int64_t group = pair * e.num_groups() + index / e.group_size();
      pack_state(e, w.state, checkpoints + group * e.state_size());
    }
    w.block.load(e, inputs, pair, index);
    w.block.ahead.clear();
    w.block.ahead.template add<T>(e, out, pair, index, Ahead::kWrite);
    for (const TensorView* view : {&inputs.k, &inputs.q, &inputs.v}) {
      w.block.ahead.template add<T>(e, *view, pair, index + 1, Ahead::kRead);
    }
    w.learner.gradients(w.block, w.state, w.tape);
    w.learner.read(w.block, w.state, w.tape, w.block.q, w.out);
    w.block.ahead.ask(16);
    output(w.block.norm, w.block.rows, w.out, w.block.q, w.out);
    w.block.ahead.ask(16);
    put_rows(e, w.block.rows, w.out, pair, index, out);
    w.learner.update(w.block, w.state, w.tape, w.state);
    w.block.ahead.ask(16);
  }
  store_state(e, w.state, pair, final_state);
}

template <typename T, typename Learner>
struct BackwardWorker {
  Arena<T> arena;
  Block<T> block;
  State<T> d_state;
  std::vector<Tape<T>> tapes;
  Learner learner;
  Rows<T> d_out, d_k, d_q, d_v;
  T* d_lr;

  explicit BackwardWorker(const Extents& e)
      : block(e, arena),
        d_state(e, arena),
        learner(e, true, arena),
        d_out(arena.rows(e.block_rows, e.features)),
        d_k(arena.rows(e.block_rows, e.features)),
        d_q(arena.rows(e.block_rows, e.features)),
        d_v(arena.rows(e.block_rows, e.features)),
        d_lr(arena.vector(e.block_rows)) {
    for (std::int64_t i = 0; i < std::min(e.group_size(), e.num_blocks()); ++i) {
      tapes.emplace_back(e, arena);
      tapes.back().start = State<T>(e, arena);
    }
  }
};

/// One mini-batch: gradients of its rows to the output tensors.
template <typename T, typename Learner>
void backward_block(const Extents& e, const TttInputs& inputs, const TensorView& d_out,
                    const TttInputGradients& gradients, std::int64_t pair, std::int64_t index,
                    const Tape<T>& tape, const PairSums<T>& sums, BackwardWorker<T, Learner>& w) {
  w.block.load(e, inputs, pair, index);
  const std::int64_t r = w.block.rows;
  get_rows(e, r, d_out, pair, index, w.d_out);
  w.block.ahead.clear();
  for (const TensorView* view : {&gradients.d_q, &gradients.d_k, &gradients.d_v}) {
    w.block.ahead.template add<T>(e, *view, pair, index, Ahead::kWrite);
  }
  for (const TensorView* view : {&d_out, &inputs.q}) {
    w.block.ahead.template add<T>(e, *view, pair, index - 1, Ahead::kRead);
  }
  for_each_vector<T>(r, e.features, [&](std::int64_t i, std::int64_t j) {
    // The residual: out = q + LN(Z').
    simd::store(w.d_q.row(i) + j, e.inner_norm ? simd::load(w.d_out.row(i) + j) : Vec<T>{});
    simd::store(w.d_k.row(i) + j, Vec<T>{});
  });
  std::fill_n(w.d_lr, simd::padded<T>(e.block_rows), T(0));
  w.learner.backward(w.block, tape, w.d_out, w.d_state, {w.d_k, w.d_q, w.d_v}, sums);
  w.block.ahead.ask(16);
  if (e.inner_norm) {
    // The target is v - k.
    for_each_vector<T>(r, e.features, [&](std::int64_t i, std::int64_t j) {
      simd::store(w.d_k.row(i) + j, simd::load(w.d_k.row(i) + j) - simd::load(w.d_v.row(i) + j));
    });
  }
  put_rows(e, r, w.d_q, pair, index, gradients.d_q);
  put_rows(e, r, w.d_k, pair, index, gradients.d_k);
  put_rows(e, r, w.d_v, pair, index, gradients.d_v);
  T* d_lr = gradients.d_token_lr.data<T>() +
            (pair / e.heads * e.tokens + index * e.mini_batch_size) * e.heads + pair % e.heads;
  for (std::int64_t i = 0; i < r; ++i) d_lr[i * e.heads] = w.d_lr[i];
}

template <typename T, typename Learner>
void backward_pair(const Extents& e, const TttInputs& inputs, const T* checkpoints,
                   const TensorView& d_out, const TttState& d_final,
                   const TttInputGradients& gradients, const TttState& d_initial, std::int64_t pair,
                   PairSums<T> sums, BackwardWorker<T, Learner>& w) {
  load_state(e, d_final, pair, w.d_state);
  w.block.load_head(e, inputs, pair);
  sums.d_lr = w.d_lr;
  for (std::int64_t group = e.num_groups() - 1; group >= 0; --group) {
    const std::int64_t begin = group * e.group_size();
    const std::int64_t count = std::min(e.group_size(), e.num_blocks() - begin);
    unpack_state(e, checkpoints + (pair * e.num_groups() + group) * e.state_size(),
                 w.tapes[0].start);
    for (std::int64_t i = 0; i < count; ++i) {
      w.block.load(e, inputs, pair, begin + i, false);
      w.block.ahead.clear();
      for (const TensorView* view : {&inputs.k, &inputs.v}) {
        w.block.ahead.template add<T>(e, *view, pair, begin + i + 1, Ahead::kRead);
      }
      w.learner.gradients(w.block, w.tapes[i].start, w.tapes[i]);
      w.block.ahead.ask(16);
      if (i + 1 == count) break;
      w.learner.update(w.block, w.tapes[i].start, w.tapes[i], w.tapes[i + 1].start);
      w.block.ahead.ask(16);
    }
    for (std::int64_t i = count - 1; i >= 0; --i) {
      backward_block(e, inputs, d_out, gradients, pair, begin + i, w.tapes[i], sums, w);
    }
  }
  store_state(e, w.d_state, pair, d_initial);
}

/// Partial gradients of the tensors that pairs share, one row a pair: [d_token_scale; d_norm_weight; d_norm_bias].
template <typename T>
class SharedGradients {
 public:
  explicit SharedGradients(const Extents& e)
      : e_(e),
        scale_(arena_.rows(e.num_pairs(), e.mini_batch_size)),
        weight_(arena_.rows(e.num_pairs(), e.features)),
        bias_(arena_.rows(e.num_pairs(), e.features)) {}

  [[nodiscard]] PairSums<T> of_pair(std::int64_t pair) const {
    return {nullptr, scale_.row(pair), {weight_.row(pair), bias_.row(pair)}};
  }

  /// Adds the partials in the order of the pairs.
  void add_to(const TttInputGradients& gradients) const {
    for (std::int64_t pair = 0; pair < e_.num_pairs(); ++pair) {
      const std::int64_t first = pair % e_.heads * e_.features;
      add(e_.mini_batch_size, scale_.row(pair), gradients.d_token_scale.data<T>());
      if (!e_.inner_norm) continue;
      add(e_.features, weight_.row(pair), gradients.d_norm_weight.data<T>() + first);
      add(e_.features, bias_.row(pair), gradients.d_norm_bias.data<T>() + first);
    }
  }

 private:
  static void add(std::int64_t count, const T* from, T* to) {
    for (std::int64_t i = 0; i < count; ++i) to[i] += from[i];
  }

  Extents e_;
  Arena<T> arena_;
  Rows<T> scale_, weight_, bias_;
};

void check_gradients(const Extents& e, const TttInputs& inputs, const TttInputGradients& d) {
  const DType dtype = inputs.q.dtype();
  const DType wide = wide_type(dtype);
  check_tensor("d_q", d.d_q, inputs.q.shape(), dtype);
  check_tensor("d_k", d.d_k, inputs.q.shape(), dtype);
  check_tensor("d_v", d.d_v, inputs.q.shape(), dtype);
  check_tensor("d_token_lr", d.d_token_lr, {e.batch, e.tokens, e.heads}, wide);
  check_tensor("d_token_scale", d.d_token_scale, {e.mini_batch_size}, wide);
  if (!e.inner_norm) return;
  check_tensor("d_norm_weight", d.d_norm_weight, {e.heads, e.features}, wide);
  check_tensor("d_norm_bias", d.d_norm_bias, {e.heads, e.features}, wide);
}

}  // namespace
}  // namespace ttt_cpu

void ttt_forward(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                 TensorView out, const TttState& final_state, TttSaved* saved, Stream& stream) {
  // NOLINTNEXTLINE(google-build-using-namespace): its own internals
  using namespace ttt_cpu;
  const Extents e = checked_extents(inputs, options, initial);
  const DType dtype = inputs.q.dtype();
  check_tensor("out", out, inputs.q.shape(), dtype);
  check_state("final_state", e, final_state, wide_type(dtype), true);
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->ttt_forward(inputs, options, initial, out, final_state, saved, stream);
  }
  if (saved != nullptr) {
    saved->checkpoints = Tensor({e.batch, e.heads, e.num_groups(), e.state_size()}, dtype);
  }
  visit_real(dtype, [&](auto zero) {
    using T = decltype(zero);
    T* checkpoints = saved == nullptr ? nullptr : saved->checkpoints.data<T>();
    visit_learner<T>(e, [&](auto* learner) {
      using Worker = ForwardWorker<T, std::remove_pointer_t<decltype(learner)>>;
      for_each_pair<Worker>(
          e, [&] { return std::make_unique<Worker>(e); },
          [&](Worker& worker, std::int64_t pair) {
            forward_pair(e, inputs, initial, out, final_state, checkpoints, pair, worker);
          });
    });
  });
}

void ttt_backward(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                  const TttSaved& saved, TensorView d_out, const TttState& d_final,
                  const TttInputGradients& gradients, const TttState& d_initial, Stream& stream) {
  // NOLINTNEXTLINE(google-build-using-namespace): its own internals
  using namespace ttt_cpu;
  const Extents e = checked_extents(inputs, options, initial);
  const DType dtype = inputs.q.dtype();
  check_tensor("d_out", d_out, inputs.q.shape(), dtype);
  check_state("d_final", e, d_final, wide_type(dtype), true);
  check_state("d_initial", e, d_initial, wide_type(dtype), false);
  check_gradients(e, inputs, gradients);
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->ttt_backward(inputs, options, initial, saved, d_out, d_final, gradients, d_initial,
                             stream);
  }
  check_tensor("saved.checkpoints", saved.checkpoints,
               {e.batch, e.heads, e.num_groups(), e.state_size()}, dtype);
  visit_real(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* checkpoints = saved.checkpoints.data<T>();
    const SharedGradients<T> shared(e);
    visit_learner<T>(e, [&](auto* learner) {
      using Worker = BackwardWorker<T, std::remove_pointer_t<decltype(learner)>>;
      for_each_pair<Worker>(
          e, [&] { return std::make_unique<Worker>(e); },
          [&](Worker& worker, std::int64_t pair) {
            backward_pair(e, inputs, checkpoints, d_out, d_final, gradients, d_initial, pair,
                          shared.of_pair(pair), worker);
          });
    });
    shared.add_to(gradients);
  });
}

}  // namespace ttt::kernels
