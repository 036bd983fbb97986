// The planned ops: most are noted only; the others say how many products they are, and allocate what the real ones do.

#include "kernels/cpu/bf16_gemm.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/ttt_call.h"
#include "kernels/cuda/norm_conv_path.h"
#include "kernels/cuda/shared_qk_path.h"
#include "kernels/cuda/ttt_paths.h"
#include "kernels/device_ops.h"
#include "kernels/planning/noted_op.h"
#include "kernels/threads.h"

namespace ttt::kernels {
namespace planning {
namespace {

double product_flops(double rows, double columns, double inner) {
  return 2 * rows * columns * inner;
}
double number(std::int64_t value) { return static_cast<double>(value); }

// The copies of operands that a product makes before it runs (kernels/cuda/matmul.cpp, kernels/cpu/matmul.cpp).
Tensor operand_copy(TensorView view, Precision precision, Stream& stream) {
  if (stream.device() == Device::kCuda) {
    const DType type = precision == Precision::kBF16 ? DType::kBF16 : DType::kF32;
    return view.dtype() == type ? Tensor() : to_dtype(view, type, stream);
  }
  if (precision != Precision::kBF16) return {};
  return {view.shape(), cpu::prefers_bf16_gemm() ? DType::kBF16 : DType::kF32};
}

void note_product(OpCall call, TensorView a, TensorView b, double flops, Precision precision,
                  Stream& stream) {
  const Tensor a_copy = operand_copy(a, precision, stream);
  const Tensor b_copy = operand_copy(b, precision, stream);
  call.kind = WorkKind::kMatmul;
  call.flops = flops;
  add(stream, std::move(call));
}

void planned_linear_forward(TensorView x, TensorView w, TensorView residual, TensorView y,
                            Precision precision, Stream& stream) {
  OpCall call =
      Noted<"linear_forward", &linear_forward>::describe(x, w, residual, y, precision, stream);
  const bool is_stack = w.shape().rank() == 3;
  // Every product of a stack reads x. A small one comes from the cache, which is not counted on.
  if (is_stack) call.bytes += number(w.size(0) - 1) * number(x.num_bytes());
  // The CPU rounds the weights of one after the other.
  const bool is_cuda = stream.device() == Device::kCuda;
  note_product(std::move(call), is_stack && !is_cuda ? w.at(0) : w, x,
               2 * number(x.size(0)) * number(w.numel()), precision, stream);
}

void planned_linear_backward_input(TensorView d_y, TensorView w, TensorView d_x,
                                   Accumulate accumulate, Precision precision, Stream& stream) {
  note_product(Noted<"linear_backward_input", &linear_backward_input>::describe(
                   d_y, w, d_x, accumulate, precision, stream),
               w, d_y, product_flops(number(d_y.size(0)), number(w.size(0)), number(w.size(1))),
               precision, stream);
}

void planned_linear_backward_weight(TensorView d_y, TensorView x, TensorView d_w,
                                    Precision precision, Stream& stream) {
  note_product(Noted<"linear_backward_weight", &linear_backward_weight>::describe(
                   d_y, x, d_w, precision, stream),
               x, d_y, product_flops(number(x.size(0)), number(x.size(1)), number(d_y.size(1))),
               precision, stream);
}

void planned_head_cross_entropy(TensorView x, TensorView w, TensorView targets,
                                TensorView token_weight, TensorView nll, TensorView d_x,
                                TensorView d_w, Precision precision, Stream& stream) {
  PlanningTrace& trace = queue_of(stream).trace();
  trace.live_at_loss = memory::live_bytes();
  OpCall call = Noted<"head_cross_entropy", &head_cross_entropy>::describe(
      x, w, targets, token_weight, nll, d_x, d_w, precision, stream);
  const bool is_bf16 = precision == Precision::kBF16;
  const bool is_cuda = stream.device() == Device::kCuda;
  Tensor x_copy, w_copy;
  if (is_cuda && is_bf16 && x.dtype() == DType::kBF16 && w.dtype() != DType::kBF16) {
    w_copy = to_dtype(w, DType::kBF16, stream);
  }
  if (!is_cuda && is_bf16) {
    x_copy = operand_copy(x, precision, stream);
    w_copy = operand_copy(w, precision, stream);
  }
  const Tensor logits(
      {head_chunk_rows(stream.device(), x.size(0), w.size(0), size_of(x.dtype())), w.size(0)},
      x.dtype());
  const double products = 1 + (d_x.empty() ? 0 : 1) + (d_w.empty() ? 0 : 1);
  call.kind = WorkKind::kMatmul;
  call.flops = products * product_flops(number(x.size(0)), number(w.size(0)), number(w.size(1)));
  // Logits are written and read by the products, and by the pass that makes them gradients.
  call.bytes += (products + 2) * number(x.size(0) * w.size(0) * size_of(x.dtype()));
  add(stream, std::move(call));
}

// Causal: half of the T x T products. Forward has two, backward five (kernels/reference/attention.h).
double attention_flops(TensorView q, TensorView k, double products) {
  return products * number(q.size(0) * q.size(2)) * number(q.size(1)) * number(k.size(1)) *
         number(q.size(3));
}

void planned_attention_forward(TensorView q, TensorView k, TensorView v, TensorView out,
                               TensorView lse, double scale, Stream& stream) {
  OpCall call =
      Noted<"attention_forward", &attention_forward>::describe(q, k, v, out, lse, scale, stream);
  call.kind = WorkKind::kAttention;
  call.flops = attention_flops(q, k, 2);
  add(stream, std::move(call));
}

void planned_attention_backward(TensorView q, TensorView k, TensorView v, TensorView out,
                                TensorView lse, TensorView d_out, TensorView d_q, TensorView d_k,
                                TensorView d_v, double scale, Stream& stream) {
  OpCall call = Noted<"attention_backward", &attention_backward>::describe(
      q, k, v, out, lse, d_out, d_q, d_k, d_v, scale, stream);
  Tensor rows, d_k_of_heads, d_v_of_heads;
  if (stream.device() == Device::kCuda) {
    rows = Tensor({q.size(0), q.size(2), q.size(1), 2}, DType::kF32);
  } else {  // each thread packs q, d_out and d_q of a head
    const auto threads = std::min<std::int64_t>(num_threads(), q.size(0) * q.size(2));
    rows = Tensor({threads, 3, q.size(1), q.size(3)}, q.dtype());
    if (q.size(2) != k.size(2)) {  // gradients by query head
      d_k_of_heads = Tensor({k.size(0), k.size(1), q.size(2), q.size(3)}, q.dtype());
      d_v_of_heads = Tensor(d_k_of_heads.shape(), q.dtype());
    }
  }
  call.kind = WorkKind::kAttention;
  call.flops = attention_flops(q, k, 5);
  add(stream, std::move(call));
}

// Of the state: one product reads it, one steps it. Backward has twice as many and recomputes the states.
double linear_attention_flops(TensorView q) { return 4 * number(q.numel()) * number(q.size(3)); }

void planned_linear_attention_forward(TensorView q, TensorView k, TensorView v, TensorView out,
                                      const LinearAttentionState& initial,
                                      const LinearAttentionState& final_state,
                                      const LinearAttentionOptions& options, Stream& stream) {
  OpCall call = Noted<"linear_attention_forward", &linear_attention_forward>::describe(
      q, k, v, out, initial, final_state, options, stream);
  call.kind = WorkKind::kAttention;
  call.flops = linear_attention_flops(q);
  add(stream, std::move(call));
}

void planned_linear_attention_backward(TensorView q, TensorView k, TensorView v,
                                       const LinearAttentionState& initial, TensorView d_out,
                                       const LinearAttentionState& d_final, TensorView d_q,
                                       TensorView d_k, TensorView d_v,
                                       const LinearAttentionState& d_initial,
                                       const LinearAttentionOptions& options, Stream& stream) {
  OpCall call = Noted<"linear_attention_backward", &linear_attention_backward>::describe(
      q, k, v, initial, d_out, d_final, d_q, d_k, d_v, d_initial, options, stream);
  Tensor quotient;
  if (stream.device() == Device::kCuda) {
    quotient = Tensor({q.size(0), q.size(2), q.size(1), 2}, DType::kF32);
  }
  call.kind = WorkKind::kAttention;
  call.flops = 3 * linear_attention_flops(q);
  add(stream, std::move(call));
}

void describe_inner_loop(OpCall& call, const ttt_cpu::Extents& e, double passes) {
  const double channels = number(e.heads * e.features);
  const double per_token =
      e.mlp ? 14 * channels * number(e.width) +
                  number(e.mini_batch_size) *
                      (4 * channels + 4 * channels * number(e.width) / number(e.features))
            : 6 * channels * number(e.features) + 4 * number(e.mini_batch_size) * channels;
  call.kind = WorkKind::kInnerLoop;
  call.flops = passes * per_token * number(e.batch * e.tokens);
  call.pairs = number(e.num_pairs());
  call.serial_steps = number(e.num_blocks());
  call.is_mlp = e.mlp;
  call.is_backward = passes > 1;
}

/// What forward keeps: checkpoints of states (kernels/cpu/ttt.cpp, kernels/cuda/ttt_generic_forward.cu), or, of the
/// fused kernels, few states and the steps' gradients (kernels/cuda/ttt_{linear,mlp}_forward.cu).
void allocate_saved(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                    TttSaved& saved, Stream& stream) {
  const ttt_cpu::Extents e = ttt_cpu::checked_extents(inputs, options, initial);
  const bool is_cuda = stream.device() == Device::kCuda;
  const cuda::BlockLimits limits =
      cuda::block_limits_of(queue_of(stream).planned().compute_capability);
  if (!is_cuda || cuda::why_generic(limits, inputs, options, initial) != nullptr) {
    saved.checkpoints = Tensor({e.batch, e.heads, e.num_groups(), e.state_size()},
                               is_cuda ? DType::kF32 : inputs.q.dtype());
    return;
  }
  constexpr std::int64_t kCheckpointEvery = 128;  // mini-batches; kernels/cuda/ttt_fused.h
  const std::int64_t states = e.mlp ? 1 : (e.num_blocks() - 1) / kCheckpointEvery + 1;
  saved.step_gradients = Tensor(inputs.q.shape(), DType::kBF16);
  saved.checkpoints = Tensor({e.batch, e.heads, states, e.state_size()}, DType::kF32);
  if (e.mlp) {
    saved.hidden_step_gradients = Tensor({e.batch, e.tokens, e.heads, e.width}, DType::kBF16);
  }
}

/// What each of the CPU's threads keeps in backward: the states and tapes of a group of mini-batches, whose number grows
/// with the sequence (BackwardWorker of kernels/cpu/ttt.cpp).
template <typename T>
std::shared_ptr<void> thread_tapes(const ttt_cpu::Extents& e) {
  auto arena = std::make_shared<ttt_cpu::Arena<T>>();
  const auto threads = std::min<std::int64_t>(num_threads(), e.num_pairs());
  const std::int64_t states = std::min(e.group_size(), e.num_blocks());
  for (std::int64_t i = 0; i < threads * states; ++i) {
    (void)ttt_cpu::Tape<T>(e, *arena);
    (void)ttt_cpu::State<T>(e, *arena);
  }
  return arena;
}

/// An inner loop on real operands, for measuring: backward needs what forward kept.
class InnerLoopRun {
 public:
  InnerLoopRun(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
               const TttState& final_state, Stream& stream)
      : inputs_(real(inputs)),
        options_(options),
        initial_(real(initial)),
        final_(real(final_state)),
        out_(inputs.q.shape(), inputs.q.dtype()),
        stream_(stream) {}

  template <typename Argument>
  Argument real(Argument argument) {
    operands_.make_real(argument);
    return argument;
  }
  void forward() { ttt_forward(inputs_, options_, initial_, out_, final_, &saved_, stream_); }
  void backward(const TttInputGradients& gradients) {
    ttt_backward(inputs_, options_, initial_, saved_, out_, {}, gradients, final_, stream_);
  }

 private:
  Operands operands_;
  TttInputs inputs_;
  TttOptions options_;
  TttState initial_, final_;
  Tensor out_;
  TttSaved saved_;
  Stream& stream_;
};

void planned_ttt_forward(const TttInputs& inputs, const TttOptions& options,
                         const TttState& initial, TensorView out, const TttState& final_state,
                         TttSaved* saved, Stream& stream) {
  if (saved != nullptr) allocate_saved(inputs, options, initial, *saved, stream);
  OpCall call = call_of("ttt_forward", inputs, initial, out, final_state);
  describe_inner_loop(call, ttt_cpu::checked_extents(inputs, options, initial), 1);
  call.prepare = [=](Stream& real) {
    const auto run = std::make_shared<InnerLoopRun>(inputs, options, initial, final_state, real);
    return [run] { run->forward(); };
  };
  add(stream, std::move(call));
}

void planned_ttt_backward(const TttInputs& inputs, const TttOptions& options,
                          const TttState& initial, const TttSaved& /*saved*/, TensorView d_out,
                          const TttState& d_final, const TttInputGradients& gradients,
                          const TttState& d_initial, Stream& stream) {
  const ttt_cpu::Extents e = ttt_cpu::checked_extents(inputs, options, initial);
  std::shared_ptr<void> tapes;
  if (stream.device() == Device::kCpu) {
    visit_real(inputs.q.dtype(), [&](auto zero) { tapes = thread_tapes<decltype(zero)>(e); });
  }
  OpCall call = call_of("ttt_backward", inputs, initial, d_out, d_final, gradients, d_initial);
  // Backward has two products for each of forward's, which it runs again.
  describe_inner_loop(call, e, 3);
  call.prepare = [=](Stream& real) {
    const auto run = std::make_shared<InnerLoopRun>(inputs, options, initial, d_initial, real);
    run->forward();
    return [run, gradients = run->real(gradients)] { run->backward(gradients); };
  };
  add(stream, std::move(call));
}

// The ids lists of kernels/cuda/embedding.cu: counters of at most 64 chunks of 512 tokens or more.
void planned_embedding_backward(TensorView ids, TensorView d_y, TensorView d_table,
                                Stream& stream) {
  Tensor counters, order;
  if (stream.device() == Device::kCuda) {
    const std::int64_t chunk = std::max<std::int64_t>(512, (ids.size(0) + 63) / 64);
    counters = Tensor({(ids.size(0) + chunk - 1) / chunk, d_table.size(0)}, DType::kI32);
    order = Tensor({ids.size(0) + d_table.size(0) + 1}, DType::kI32);
  }
  OpCall call =
      Noted<"embedding_backward", &embedding_backward>::describe(ids, d_y, d_table, stream);
  call.bytes += 2 * number(d_y.num_bytes()) - number(d_table.num_bytes());  // only rows that occur
  add(stream, std::move(call));
}

void planned_embedding_forward(TensorView ids, TensorView table, TensorView y, Stream& stream) {
  OpCall call = Noted<"embedding_forward", &embedding_forward>::describe(ids, table, y, stream);
  call.bytes += number(y.num_bytes()) - number(table.num_bytes());  // only rows that occur
  add(stream, std::move(call));
}

// The angles that kernels/cuda/rope.cu looks up: attention's are of all positions.
Tensor rope_table(TensorView x, const RopeOptions& options, Stream& stream) {
  if (stream.device() == Device::kCpu) return {};
  const std::int64_t tokens = x.size(1);
  return {{options.period == 0 ? tokens : std::min(options.period, tokens), x.size(3)},
          DType::kF32};
}

void planned_rope_forward(TensorView x, TensorView y, const RopeOptions& options, Stream& stream) {
  const Tensor table = rope_table(x, options, stream);
  add(stream, Noted<"rope_forward", &rope_forward>::describe(x, y, options, stream));
}

void planned_rope_backward(TensorView d_y, TensorView d_x, const RopeOptions& options,
                           Stream& stream) {
  const Tensor table = rope_table(d_y, options, stream);
  add(stream, Noted<"rope_backward", &rope_backward>::describe(d_y, d_x, options, stream));
}

void planned_shared_qk_forward(TensorView p, TensorView w_q, TensorView bias_q, TensorView w_k,
                               TensorView bias_k, TensorView history, TensorView q, TensorView k,
                               TensorView final_history, const std::optional<RopeOptions>& rope,
                               Stream& stream) {
  const Tensor table = rope ? rope_table(p, *rope, stream) : Tensor();
  add(stream, Noted<"shared_qk_forward", &shared_qk_forward>::describe(
                  p, w_q, bias_q, w_k, bias_k, history, q, k, final_history, rope, stream));
}

void planned_shared_qk_backward(TensorView p, TensorView w_q, TensorView w_k, TensorView d_q,
                                TensorView d_k, TensorView d_p, TensorView d_w_q,
                                TensorView d_bias_q, TensorView d_w_k, TensorView d_bias_k,
                                const std::optional<RopeOptions>& rope, Stream& stream) {
  const Tensor table = rope ? rope_table(p, *rope, stream) : Tensor();
  Tensor through_k;
  if (stream.device() == Device::kCuda && !cuda::is_one_pass(p, w_q, rope)) {
    through_k = Tensor(p.shape(), p.dtype());
  }
  add(stream, Noted<"shared_qk_backward", &shared_qk_backward>::describe(
                  p, w_q, w_k, d_q, d_k, d_p, d_w_q, d_bias_q, d_w_k, d_bias_k, rope, stream));
}

// A norm and a convolution, where CUDA has no kernel of one pass, hand rows on in memory.
Tensor planned_rows(TensorView x, TensorView w, Stream& stream) {
  if (stream.device() == Device::kCpu || cuda::is_one_pass(x, w)) return {};
  return {x.shape(), x.dtype()};
}

void planned_norm_conv_forward(TensorView x, TensorView norm_w, TensorView w, TensorView bias,
                               TensorView history, TensorView y, TensorView final_history,
                               double epsilon, Stream& stream) {
  const Tensor normed = planned_rows(x, w, stream);
  add(stream, Noted<"norm_conv_forward", &norm_conv_forward>::describe(
                  x, norm_w, w, bias, history, y, final_history, epsilon, stream));
}

void planned_norm_conv_backward(TensorView x, TensorView norm_w, TensorView w, TensorView d_y,
                                TensorView d_x, TensorView d_norm_w, TensorView d_w,
                                TensorView d_bias, double epsilon, Stream& stream) {
  const Tensor normed = planned_rows(x, w, stream);
  const Tensor d_normed = planned_rows(x, w, stream);
  add(stream, Noted<"norm_conv_backward", &norm_conv_backward>::describe(
                  x, norm_w, w, d_y, d_x, d_norm_w, d_w, d_bias, epsilon, stream));
}

DeviceOps make_planning_ops() {
  DeviceOps ops;
#define TTT_NOTED(op) ops.op = &Noted<#op, &kernels::op>::run;
  TTT_DEVICE_OPS(TTT_NOTED)
#undef TTT_NOTED
  ops.linear_forward = &planned_linear_forward;
  ops.linear_backward_input = &planned_linear_backward_input;
  ops.linear_backward_weight = &planned_linear_backward_weight;
  ops.head_cross_entropy = &planned_head_cross_entropy;
  ops.attention_forward = &planned_attention_forward;
  ops.attention_backward = &planned_attention_backward;
  ops.linear_attention_forward = &planned_linear_attention_forward;
  ops.linear_attention_backward = &planned_linear_attention_backward;
  ops.rope_forward = &planned_rope_forward;
  ops.rope_backward = &planned_rope_backward;
  ops.norm_conv_forward = &planned_norm_conv_forward;
  ops.norm_conv_backward = &planned_norm_conv_backward;
  ops.shared_qk_forward = &planned_shared_qk_forward;
  ops.shared_qk_backward = &planned_shared_qk_backward;
  ops.ttt_forward = &planned_ttt_forward;
  ops.ttt_backward = &planned_ttt_backward;
  ops.embedding_forward = &planned_embedding_forward;
  ops.embedding_backward = &planned_embedding_backward;
  return ops;
}

}  // namespace
}  // namespace planning

const DeviceOps& planning_ops() {
  static const DeviceOps ops = planning::make_planning_ops();
  return ops;
}

}  // namespace ttt::kernels
