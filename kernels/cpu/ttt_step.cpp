// ttt_step (decoding, primal form) and ttt_inner_loss on the CPU.

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/ttt_call.h"
#include "kernels/device_ops.h"
#include "kernels/ttt.h"

namespace ttt::kernels {
namespace ttt_cpu {
namespace {

template <typename T, typename Learner>
struct StepWorker {
  Arena<T> arena;
  Block<T> block;
  State<T> state, other, now;
  Tape<T> tape;
  Learner learner;
  Rows<T> z;

  explicit StepWorker(const Extents& e)
      : block(e, arena),
        state(e, arena),
        other(e, arena),
        now(e, arena),
        tape(e, arena),
        learner(e, false, arena),
        z(arena.rows(e.block_rows, e.features)) {}
};

template <typename T>
std::vector<Rows<T>> members_of(const Extents& e, const State<T>& state) {
  std::vector<Rows<T>> members;
  for_each_member(e, state,
                  [&](int, std::int64_t, std::int64_t, Rows<T> rows) { members.push_back(rows); });
  return members;
}

/// to = state - factor * sums, member by member.
template <typename T>
void take_step(const Extents& e, const State<T>& state, T factor, const State<T>& sums,
               const State<T>& to) {
  const std::vector<Rows<T>> from = members_of(e, state);
  const std::vector<Rows<T>> sum = members_of(e, sums);
  std::size_t next = 0;
  for_each_member(e, to, [&](int, std::int64_t rows, std::int64_t columns, Rows<T> now) {
    const std::size_t member = next++;
    for_each_vector<T>(rows, columns, [&](std::int64_t i, std::int64_t j) {
      simd::store(now.row(i) + j,
                  simd::fma(simd::splat(-factor), simd::load(sum[member].row(i) + j),
                            simd::load(from[member].row(i) + j)));
    });
  });
}

/// Token by token W_i = W - c_i sums, out = q + LN(f(q; W_i)); a full mini-batch hands its last W_i on. `e` has
/// mini-batches of one token.
template <typename T, typename Learner>
void step_pair(const Extents& e, const TttInputs& inputs, std::int64_t place, bool ends_mini_batch,
               const TttState& state, const TttState& sums, const TensorView& out,
               std::int64_t pair, StepWorker<T, Learner>& w) {
  load_state(e, state, pair, w.state);
  load_state(e, sums, pair, w.other);
  w.block.load_head(e, inputs, pair);
  for (std::int64_t token = 0; token < e.tokens; ++token) {
    w.block.load(e, inputs, pair, token);
    w.learner.gradients(w.block, w.state, w.tape);
    w.learner.accumulate(w.block, w.tape, w.other);
    take_step(e, w.state, w.block.scale[place + token], w.other, w.now);
    w.learner.evaluate(w.now, 1, w.block.q, w.z);
    output(w.block.norm, 1, w.z, w.block.q, w.z);
    std::copy_n(w.z.data, e.features, pair_rows<T>(e, out, pair, token));
  }
  if (ends_mini_batch) {
    store_state(e, w.now, pair, state);
    load_state(e, TttState{}, pair, w.other);
  }
  store_state(e, w.other, pair, sums);
}

/// Row `row` of losses for the mini-batch whose f(k) before the norm is w.z.
template <typename T, typename Learner>
void put_losses(const Extents& e, const TttInputs& inputs, std::int64_t pair, std::int64_t index,
                std::int64_t row, const TensorView& losses, StepWorker<T, Learner>& w) {
  output(w.block.norm, w.block.rows, w.z, w.block.k, w.z);
  const std::int64_t token = index * e.mini_batch_size;
  for (std::int64_t i = 0; i < w.block.rows; ++i) {
    const T* v = pair_rows<T>(e, inputs.v, pair, token + i);
    double sum = 0;
    for (std::int64_t f = 0; f < e.features; ++f) {
      const double error = static_cast<double>(w.z.row(i)[f]) - static_cast<double>(v[f]);
      sum += error * error;
    }
    const std::int64_t b = pair / e.heads;
    losses.data<double>()[((row * e.batch + b) * e.tokens + token + i) * e.heads + pair % e.heads] =
        0.5 * sum;
  }
}

template <typename T, typename Learner>
void loss_pair(const Extents& e, const TttInputs& inputs, const TttState& initial,
               const TensorView& losses, std::int64_t pair, StepWorker<T, Learner>& w) {
  load_state(e, initial, pair, w.state);
  load_state(e, initial, pair, w.other);
  w.block.load_head(e, inputs, pair);
  for (std::int64_t index = 0; index < e.num_blocks(); ++index) {
    w.block.load(e, inputs, pair, index);
    w.learner.evaluate(w.other, w.block.rows, w.block.k, w.z);
    put_losses(e, inputs, pair, index, 0, losses, w);
    w.learner.evaluate(w.state, w.block.rows, w.block.k, w.z);
    put_losses(e, inputs, pair, index, 1, losses, w);
    w.learner.gradients(w.block, w.state, w.tape);
    w.learner.read(w.block, w.state, w.tape, w.block.k, w.z);  // k where q stood: f(k_t; W_t)
    put_losses(e, inputs, pair, index, 2, losses, w);
    w.learner.update(w.block, w.state, w.tape, w.state);
  }
}

/// Calls body(pair, worker) for every (sequence, head) with a StepWorker of the element type and the learner.
template <typename Body>
void for_each_step_pair(DType dtype, const Extents& e, const Body& body) {
  visit_real(dtype, [&](auto zero) {
    using T = decltype(zero);
    visit_learner<T>(e, [&](auto* learner) {
      using Worker = StepWorker<T, std::remove_pointer_t<decltype(learner)>>;
      for_each_pair<Worker>(
          e, [&] { return std::make_unique<Worker>(e); },
          [&](Worker& worker, std::int64_t pair) { body(pair, worker); });
    });
  });
}

}  // namespace
}  // namespace ttt_cpu

void ttt_step(const TttInputs& inputs, const TttOptions& options, std::int64_t place,
              const TttState& state, const TttState& sums, TensorView out, Stream& stream) {
  // NOLINTNEXTLINE(google-build-using-namespace): its own internals
  using namespace ttt_cpu;
  Extents e = checked_extents(inputs, options, state);
  const DType dtype = inputs.q.dtype();
  TTT_CHECK(place >= 0 && place < e.mini_batch_size && place + e.tokens <= e.mini_batch_size,
            "decoding takes tokens of one mini-batch: {} from place {} of {}", e.tokens, place,
            e.mini_batch_size);
  check_state("sums", e, sums, wide_type(dtype), false);
  check_tensor("out", out, inputs.q.shape(), dtype);
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->ttt_step(inputs, options, place, state, sums, out, stream);
  }
  const bool ends_mini_batch = place + e.tokens == e.mini_batch_size;
  e.mini_batch_size = e.block_rows = 1;
  for_each_step_pair(dtype, e, [&](std::int64_t pair, auto& worker) {
    step_pair(e, inputs, place, ends_mini_batch, state, sums, out, pair, worker);
  });
}

void ttt_inner_loss(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                    TensorView losses, Stream& stream) {
  // NOLINTNEXTLINE(google-build-using-namespace): its own internals
  using namespace ttt_cpu;
  const Extents e = checked_extents(inputs, options, initial);
  check_tensor("losses", losses, {3, e.batch, e.tokens, e.heads}, DType::kF64);
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->ttt_inner_loss(inputs, options, initial, losses, stream);
  }
  for_each_step_pair(inputs.q.dtype(), e, [&](std::int64_t pair, auto& worker) {
    loss_pair(e, inputs, initial, losses, pair, worker);
  });
}

}  // namespace ttt::kernels
