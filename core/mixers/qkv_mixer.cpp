#include "core/mixers/qkv_mixer.h"

#include "kernels/activation.h"
#include "kernels/copy.h"
#include "kernels/norm.h"

namespace ttt {
namespace {

constexpr double kPostNormEpsilon = 1e-6;

struct QkvDecodeState final : DecodeState {
  Tensor history;  // the last inputs of conv_q and conv_k, which are the same
  std::unique_ptr<DecodeState> core;
};

}  // namespace

struct QkvMixer::Activations final : Saved {
  Tensor p;        // with share_qk: the shared projection
  Tensor q, k, v;  // as the core left them
  std::unique_ptr<Saved> core;
  Tensor core_out;    // [B, T, H, F]
  Tensor mean, rstd;  // with post_norm
  Tensor gate;        // with use_gate: before the activation
};

QkvMixer::QkvMixer(ParameterStore& store, const std::string& prefix,
                   const config::ModelConfig& config, std::int64_t context_length,
                   std::int64_t layer)
    : store_(store),
      num_heads_(config.num_heads()),
      num_kv_heads_(config.num_heads()),
      head_dim_(config.hidden_size() / config.num_heads()) {
  const std::int64_t channels = config.hidden_size();
  const Initializer normal = Initializer::normal(config.initializer_range());
  if (config.mixer() == config::ATTENTION && config.attention().num_kv_heads() > 0) {
    num_kv_heads_ = config.attention().num_kv_heads();
  }
  const std::int64_t kv_channels = num_kv_heads_ * head_dim_;
  const auto linear = [&](const char* name, std::int64_t outputs) {
    return std::make_unique<Linear>(store, prefix + "." + name + ".weight", outputs, channels,
                                    normal);
  };
  q_proj_ = linear("q_proj", channels);
  if (config.share_qk()) {
    conv_q_ =
        std::make_unique<CausalConv>(store, prefix + ".conv_q", channels, config.conv_kernel());
    conv_k_ =
        std::make_unique<CausalConv>(store, prefix + ".conv_k", channels, config.conv_kernel());
  } else {
    k_proj_ = linear("k_proj", kv_channels);
  }
  v_proj_ = linear("v_proj", kv_channels);
  core_ = make_core(store, prefix, config, context_length, layer);
  // Plain Llama has no norm here; every core in a gated block does, as TTT has.
  if (config.mixer() != config::ATTENTION || config.use_gate()) {
    post_norm_weight_ =
        &store.add(prefix + ".post_norm.weight", {channels}, Initializer::constant(1));
    post_norm_bias_ = &store.add(prefix + ".post_norm.bias", {channels}, Initializer::constant(0));
  }
  if (config.use_gate()) g_proj_ = linear("g_proj", channels);
  o_proj_ = linear("o_proj", channels);
}

CoreInputs QkvMixer::core_inputs(TensorView x, const Activations& a) const {
  const std::int64_t batch = x.size(0);
  const std::int64_t tokens = x.size(1);
  const Shape kv{batch, tokens, num_kv_heads_, head_dim_};
  return {x, a.q.view().reshape({batch, tokens, num_heads_, head_dim_}), a.k.view().reshape(kv),
          a.v.view().reshape(kv)};
}

void QkvMixer::project(TensorView x, Activations& a, TensorView q_history, Context& context) const {
  if (conv_q_) {
    a.p = q_proj_->forward(x, context);
    a.q = Tensor(a.p.shape(), x.dtype());
    a.k = Tensor(a.p.shape(), x.dtype());
    if (q_history.empty()) {
      conv_q_->forward(a.p, a.q, context);
      conv_k_->forward(a.p, a.k, context);
    } else {
      const Tensor k_history = kernels::to_dtype(q_history, q_history.dtype(), context.stream);
      conv_q_->extend(a.p, a.q, q_history, context);
      conv_k_->extend(a.p, a.k, k_history, context);
    }
  } else {
    a.q = q_proj_->forward(x, context);
    a.k = k_proj_->forward(x, context);
  }
  a.v = v_proj_->forward(x, context);
  a.core_out = Tensor({x.size(0), x.size(1), num_heads_, head_dim_}, x.dtype());
}

void QkvMixer::finish(TensorView x, Activations& a, TensorView y, Context& context) const {
  const std::int64_t rows = x.size(0) * x.size(1);
  Tensor mixed = a.core_out;
  if (post_norm_weight_ != nullptr) {
    a.mean = Tensor({rows}, wide_type(x.dtype()));
    a.rstd = Tensor({rows}, wide_type(x.dtype()));
    mixed = normalize(a.core_out, a.mean, a.rstd, context);
  }
  if (g_proj_) {
    a.gate = g_proj_->forward(x, context);
    kernels::gated_forward(kernels::Activation::kGeluTanh, a.gate, mixed.view().reshape(x.shape()),
                           mixed.view().reshape(x.shape()), context.stream);
  }
  o_proj_->forward(mixed, y, context);
}

Tensor QkvMixer::normalize(const Tensor& core_out, TensorView mean, TensorView rstd,
                           Context& context) const {
  Tensor normed(core_out.shape(), core_out.dtype());
  const Shape flat{core_out.size(0) * core_out.size(1), core_out.size(2) * core_out.size(3)};
  kernels::layer_norm_forward(core_out.view().reshape(flat), post_norm_weight_->value,
                              post_norm_bias_->value, normed.view().reshape(flat), mean, rstd,
                              kPostNormEpsilon, context.stream);
  return normed;
}

std::unique_ptr<Saved> QkvMixer::forward(TensorView x, TensorView y, Context& context) const {
  auto a = std::make_unique<Activations>();
  project(x, *a, {}, context);
  a->core = core_->forward(core_inputs(x, *a), a->core_out, context);
  finish(x, *a, y, context);
  return a;
}

const Saved& QkvMixer::core_saved(const Saved& saved) {
  return *static_cast<const Activations&>(saved).core;
}

void QkvMixer::backward(const Saved& saved, TensorView x, TensorView d_y, TensorView d_x,
                        Context& context) const {
  const auto& a = static_cast<const Activations&>(saved);
  const Shape& shape = x.shape();
  const Shape flat{shape[0] * shape[1], shape[2]};
  kernels::fill(d_x, 0, context.stream);
  const Tensor d_mixed(shape, d_y.dtype());
  Tensor normed = a.core_out;
  if (post_norm_weight_ != nullptr) normed = normalize(a.core_out, {}, {}, context);
  if (g_proj_) {
    const TensorView y = normed.view().reshape(shape);
    const Tensor mixed(shape, d_y.dtype());
    kernels::gated_forward(kernels::Activation::kGeluTanh, a.gate, y, mixed, context.stream);
    o_proj_->backward(mixed, d_y, d_mixed, kernels::Accumulate::kNo, context);
    const Tensor& d_gate = mixed;  // reused
    kernels::gated_backward(kernels::Activation::kGeluTanh, a.gate, y, d_mixed, d_gate, d_mixed,
                            context.stream);
    g_proj_->backward(x, d_gate, d_x, kernels::Accumulate::kYes, context);
  } else {
    o_proj_->backward(normed, d_y, d_mixed, kernels::Accumulate::kNo, context);
  }
  normed = {};
  if (post_norm_weight_ != nullptr) {
    kernels::layer_norm_backward(a.core_out.view().reshape(flat), post_norm_weight_->value, a.mean,
                                 a.rstd, d_mixed.view().reshape(flat), d_mixed.view().reshape(flat),
                                 post_norm_weight_->grad, post_norm_bias_->grad, context.stream);
  }
  const CoreInputs inputs = core_inputs(x, a);
  const Tensor d_q(a.q.shape(), d_y.dtype());
  const Tensor d_k(a.k.shape(), d_y.dtype());
  const Tensor d_v(a.v.shape(), d_y.dtype());
  core_->backward(*a.core, inputs, a.core_out, d_mixed.view().reshape(a.core_out.shape()),
                  {d_q.view().reshape(inputs.q.shape()), d_k.view().reshape(inputs.k.shape()),
                   d_v.view().reshape(inputs.v.shape()), d_x},
                  context);
  v_proj_->backward(x, d_v, d_x, kernels::Accumulate::kYes, context);
  backward_qk(a, x, d_q, d_k, d_x, context);
}

void QkvMixer::backward_qk(const Activations& a, TensorView x, TensorView d_q, TensorView d_k,
                           TensorView d_x, Context& context) const {
  if (conv_q_) {
    const Tensor d_p(a.p.shape(), a.p.dtype());
    const Tensor d_p_of_k(a.p.shape(), a.p.dtype());
    conv_q_->backward(a.p, d_q, d_p, context);
    conv_k_->backward(a.p, d_k, d_p_of_k, context);
    kernels::add(d_p_of_k, d_p, context.stream);
    q_proj_->backward(x, d_p, d_x, kernels::Accumulate::kYes, context);
  } else {
    q_proj_->backward(x, d_q, d_x, kernels::Accumulate::kYes, context);
    k_proj_->backward(x, d_k, d_x, kernels::Accumulate::kYes, context);
  }
}

std::unique_ptr<DecodeState> QkvMixer::make_decode_state(std::int64_t batch,
                                                         Context& context) const {
  auto state = std::make_unique<QkvDecodeState>();
  if (conv_q_) {
    state->history = kernels::zeros(conv_q_->history_shape(batch),
                                    context.activation_type(store_.dtype()), context.stream);
  }
  state->core = core_->make_decode_state(batch, context);
  return state;
}

void QkvMixer::extend(TensorView x, TensorView y, DecodeState& state, Context& context) const {
  auto& s = static_cast<QkvDecodeState&>(state);
  Activations a;
  project(x, a, s.history, context);
  core_->extend(core_inputs(x, a), a.core_out, *s.core, context);
  finish(x, a, y, context);
}

}  // namespace ttt
