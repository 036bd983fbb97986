#include "core/mixers/linear_attention_core.h"

#include "kernels/copy.h"

namespace ttt {
namespace {

struct LinearAttentionDecodeState final : DecodeState {
  Tensor kv, k_sum;
  [[nodiscard]] kernels::LinearAttentionState views() const { return {kv, k_sum}; }
};

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
  kernels::linear_attention_forward(inputs.q, inputs.k, inputs.v, out, {}, {}, options_,
                                    context.stream);
  return std::make_unique<Saved>();
}

void LinearAttentionCore::backward(const Saved& /*saved*/, const CoreInputs& inputs,
                                   TensorView /*out*/, TensorView d_out,
                                   const CoreGradients& gradients, Context& context) const {
  kernels::linear_attention_backward(inputs.q, inputs.k, inputs.v, d_out, gradients.d_q,
                                     gradients.d_k, gradients.d_v, options_, context.stream);
}

std::unique_ptr<DecodeState> LinearAttentionCore::make_decode_state(std::int64_t batch,
                                                                    Context& context) const {
  auto state = std::make_unique<LinearAttentionDecodeState>();
  state->kv =
      kernels::zeros({batch, num_heads_, head_dim_, head_dim_}, store_.dtype(), context.stream);
  state->k_sum = kernels::zeros({batch, num_heads_, head_dim_}, store_.dtype(), context.stream);
  return state;
}

void LinearAttentionCore::extend(const CoreInputs& inputs, TensorView out, DecodeState& state,
                                 Context& context) const {
  const auto& s = static_cast<const LinearAttentionDecodeState&>(state);
  kernels::linear_attention_forward(inputs.q, inputs.k, inputs.v, out, s.views(), s.views(),
                                    options_, context.stream);
}

// The recurrent form: state update and read-out.
double LinearAttentionCore::flops_per_token(std::int64_t /*context_length*/) const {
  return 4.0 * static_cast<double>(num_heads_ * head_dim_ * head_dim_);
}

}  // namespace ttt
