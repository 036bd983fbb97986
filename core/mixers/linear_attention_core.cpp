#include "core/mixers/linear_attention_core.h"

#include "core/sequence_exchange.h"
#include "kernels/copy.h"

namespace ttt {
namespace {

struct State {
  Tensor kv, k_sum;  // empty: zero
  [[nodiscard]] kernels::LinearAttentionState views() const { return {kv, k_sum}; }
};

struct LinearAttentionSaved final : Saved {
  State initial;
};

struct LinearAttentionDecodeState final : DecodeState {
  State state;
};

State make_state(TensorView q, DType dtype) {
  const std::int64_t dim = q.size(3);
  return {Tensor({q.size(0), q.size(2), dim, dim}, dtype),
          Tensor({q.size(0), q.size(2), dim}, dtype)};
}

void receive(const State& state, Neighbour from, Context& context) {
  context.sequence->receive(state.kv, from, context.stream);
  context.sequence->receive(state.k_sum, from, context.stream);
}

void send(const State& state, Neighbour to, Context& context) {
  context.sequence->send(state.kv, to, context.stream);
  context.sequence->send(state.k_sum, to, context.stream);
}

}  // namespace

LinearAttentionCore::LinearAttentionCore(const ParameterStore& store,
                                         const config::ModelConfig& config)
    : store_(store),
      num_heads_(config.num_heads()),
      head_dim_(config.hidden_size() / config.num_heads()) {
  const config::LinearAttentionConfig& c = config.linear_attention();
  options_.feature_map = c.feature_map() == config::LinearAttentionConfig::ELU_PLUS_ONE
                             ? kernels::FeatureMap::kEluPlusOne
                             : kernels::FeatureMap::kIdentity;
  options_.normalize = c.normalize();
}

std::unique_ptr<Saved> LinearAttentionCore::forward(const CoreInputs& inputs, TensorView out,
                                                    Context& context) const {
  auto saved = std::make_unique<LinearAttentionSaved>();
  State final_state;
  if (receives_state(context)) {
    saved->initial = make_state(inputs.q, store_.dtype());
    receive(saved->initial, Neighbour::kPrevious, context);
  }
  if (sends_state(context)) final_state = make_state(inputs.q, store_.dtype());
  kernels::linear_attention_forward(inputs.q, inputs.k, inputs.v, out, saved->initial.views(),
                                    final_state.views(), options_, context.stream);
  if (sends_state(context)) send(final_state, Neighbour::kNext, context);
  return saved;
}

void LinearAttentionCore::backward(const Saved& saved, const CoreInputs& inputs, TensorView /*out*/,
                                   TensorView d_out, const CoreGradients& gradients,
                                   Context& context) const {
  const auto& s = static_cast<const LinearAttentionSaved&>(saved);
  State d_final;
  State d_initial;
  if (sends_state(context)) {
    d_final = make_state(inputs.q, store_.dtype());
    receive(d_final, Neighbour::kNext, context);
  }
  if (receives_state(context)) d_initial = make_state(inputs.q, store_.dtype());
  kernels::linear_attention_backward(inputs.q, inputs.k, inputs.v, s.initial.views(), d_out,
                                     d_final.views(), gradients.d_q, gradients.d_k, gradients.d_v,
                                     d_initial.views(), options_, context.stream);
  if (receives_state(context)) send(d_initial, Neighbour::kPrevious, context);
}

std::unique_ptr<DecodeState> LinearAttentionCore::make_decode_state(std::int64_t batch,
                                                                    Context& context) const {
  auto state = std::make_unique<LinearAttentionDecodeState>();
  state->state = {
      kernels::zeros({batch, num_heads_, head_dim_, head_dim_}, store_.dtype(), context.stream),
      kernels::zeros({batch, num_heads_, head_dim_}, store_.dtype(), context.stream)};
  return state;
}

void LinearAttentionCore::extend(const CoreInputs& inputs, TensorView out, DecodeState& state,
                                 Context& context) const {
  const auto& s = static_cast<const LinearAttentionDecodeState&>(state);
  kernels::linear_attention_forward(inputs.q, inputs.k, inputs.v, out, s.state.views(),
                                    s.state.views(), options_, context.stream);
}

// The recurrent form: state update and read-out.
double LinearAttentionCore::flops_per_token(std::int64_t /*context_length*/) const {
  return 4.0 * static_cast<double>(num_heads_ * head_dim_ * head_dim_);
}

}  // namespace ttt
