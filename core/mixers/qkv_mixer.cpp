#include "core/mixers/qkv_mixer.h"

#include <utility>

#include "core/sequence_exchange.h"
#include "kernels/copy.h"
#include "kernels/norm.h"

namespace ttt {
namespace {

constexpr double kPostNormEpsilon = 1e-6;

// [B, T, C] as [B T, C]; empty stays empty.
TensorView rows_of(const Tensor& x) {
  if (x.empty()) return {};
  return x.view().reshape({x.size(0) * x.size(1), x.size(2)});
}

struct QkvDecodeState final : DecodeState {
  Tensor history;             // with share_qk: the last inputs of the convolutions
  std::int64_t position = 0;  // of the next token
  std::unique_ptr<DecodeState> core;
};

}  // namespace

struct QkvMixer::Activations final : Saved {
  Tensor p, halo;  // with share_qk: the shared projection and what is before it
  Tensor q, k, v;  // as the core takes them
  std::unique_ptr<Saved> core;
  Tensor core_out;  // [B, T, H F] as the core wrote it
  Tensor
      y;  // the same with all heads of this rank's tokens: shares its memory without head exchange
  Tensor mean, rstd;  // with post_norm
  Tensor gate;        // with use_gate: before the activation
};

QkvMixer::QkvMixer(ParameterStore& store, const std::string& prefix,
                   const config::ModelConfig& config, std::int64_t context_length,
                   std::int64_t layer)
    : store_(store),
      head_dim_(config.hidden_size() / config.num_heads()),
      has_gate_(config.use_gate()) {
  const std::int64_t channels = config.hidden_size();
  const Initializer normal = Initializer::normal(config.initializer_range());
  const bool grouped = config.mixer() == config::ATTENTION && config.attention().num_kv_heads() > 0;
  const std::int64_t kv_channels =
      grouped ? config.attention().num_kv_heads() * head_dim_ : channels;
  projections_ = std::make_unique<Projections>(
      store,
      std::vector<Projections::Output>{
          {prefix + ".q_proj.weight", channels},
          {prefix + ".g_proj.weight", has_gate_ ? channels : 0},
          {prefix + ".k_proj.weight", config.share_qk() ? 0 : kv_channels},
          {prefix + ".v_proj.weight", kv_channels}},
      channels, normal);
  if (config.share_qk()) {
    shared_qk_ =
        std::make_unique<SharedQk>(store, prefix, channels, config.conv_kernel(), head_dim_);
  }
  core_ = make_core(store, prefix, config, context_length, layer);
  // Plain Llama has no norm here; every core in a gated block does, as TTT has.
  if (config.mixer() != config::ATTENTION || config.use_gate()) {
    post_norm_weight_ =
        &store.add(prefix + ".post_norm.weight", {channels}, Initializer::constant(1));
    post_norm_bias_ = &store.add(prefix + ".post_norm.bias", {channels}, Initializer::constant(0));
  }
  o_proj_ = std::make_unique<Linear>(store, prefix + ".o_proj.weight", channels, channels, normal);
}

CoreInputs QkvMixer::core_inputs(TensorView x, const Activations& a) const {
  return {x, split_heads(a.q), split_heads(a.k), split_heads(a.v)};
}

TensorView QkvMixer::split_heads(TensorView view) const {
  return view.reshape({view.size(0), view.size(1), view.size(2) / head_dim_, head_dim_});
}

void QkvMixer::project(TensorView x, Activations& a, DecodeState* decoding,
                       Context& context) const {
  auto* const state = static_cast<QkvDecodeState*>(decoding);
  std::optional<kernels::RopeOptions> rope = core_->rope();
  if (rope && state != nullptr) rope->first_position = state->position;
  std::vector<Tensor> projected = projections_->forward(x, context);
  const auto take = [&](Projection i) { return std::exchange(projected[i], {}); };
  a.gate = take(kGate);
  if (shared_qk_) {
    a.p = tokens_to_heads(take(kQ), context);
    a.q = Tensor(a.p.shape(), x.dtype());
    a.k = Tensor(a.p.shape(), x.dtype());
    if (state == nullptr) {
      a.halo = shared_qk_->halo(a.p, context);
      shared_qk_->forward(a.p, a.halo, rope, a.q, a.k, context);
    } else {
      shared_qk_->extend(a.p, rope, a.q, a.k, state->history, context);
    }
  } else {
    a.q = tokens_to_heads(take(kQ), context);
    a.k = tokens_to_heads(take(kK), context);
    if (rope) {
      kernels::rope_forward(split_heads(a.q), split_heads(a.q), *rope, context.stream);
      kernels::rope_forward(split_heads(a.k), split_heads(a.k), *rope, context.stream);
    }
  }
  if (state != nullptr) state->position += x.size(1);
  a.v = tokens_to_heads(take(kV), context);
  a.core_out = Tensor(a.q.shape(), x.dtype());
}

void QkvMixer::finish(TensorView x, Activations& a, TensorView residual, TensorView y,
                      Context& context) const {
  a.y = heads_to_tokens(a.core_out, context);
  Tensor mixed = a.y;
  if (post_norm_weight_ != nullptr) {
    const std::int64_t rows = x.size(0) * x.size(1);
    a.mean = Tensor({rows}, wide_type(x.dtype()));
    a.rstd = Tensor({rows}, wide_type(x.dtype()));
    mixed = Tensor(a.y.shape(), a.y.dtype());
    kernels::layer_norm_forward(rows_of(a.y), post_norm_weight_->value, post_norm_bias_->value,
                                rows_of(a.gate), rows_of(mixed), a.mean, a.rstd, kPostNormEpsilon,
                                context.stream);
  }
  o_proj_->forward(mixed, residual, y, context);
}

std::unique_ptr<Saved> QkvMixer::forward(TensorView x, TensorView residual, TensorView y,
                                         Context& context) const {
  auto a = std::make_unique<Activations>();
  project(x, *a, nullptr, context);
  a->core = core_->forward(core_inputs(x, *a), split_heads(a->core_out), context);
  finish(x, *a, residual, y, context);
  return a;
}

const Saved& QkvMixer::core_saved(const Saved& saved) {
  return *static_cast<const Activations&>(saved).core;
}

void QkvMixer::backward(const Saved& saved, TensorView x, TensorView d_y, TensorView d_x,
                        Context& context) const {
  const auto& a = static_cast<const Activations&>(saved);
  const Tensor d_mixed(x.shape(), d_y.dtype());
  o_proj_->backward_input(d_y, d_mixed, kernels::Accumulate::kNo, context);
  Tensor mixed = a.y;
  Tensor d_gate;
  if (post_norm_weight_ != nullptr) {
    mixed = Tensor(x.shape(), d_y.dtype());
    if (has_gate_) d_gate = Tensor(x.shape(), d_y.dtype());
    kernels::layer_norm_backward(rows_of(a.y), post_norm_weight_->value, post_norm_bias_->value,
                                 rows_of(a.gate), a.mean, a.rstd, rows_of(d_mixed), rows_of(mixed),
                                 rows_of(d_mixed), rows_of(d_gate), post_norm_weight_->grad,
                                 post_norm_bias_->grad, context.stream);
  }
  o_proj_->backward_weight(mixed, d_y, context);
  mixed = {};
  if (has_gate_) {
    (*projections_)[kGate].backward(x, d_gate, d_x, kernels::Accumulate::kNo, context);
    d_gate = {};
  } else {
    kernels::fill(d_x, 0, context.stream);
  }
  const Tensor d_q(a.q.shape(), d_y.dtype());
  const Tensor d_k(a.k.shape(), d_y.dtype());
  const Tensor d_v(a.v.shape(), d_y.dtype());
  core_->backward(*a.core, core_inputs(x, a), split_heads(a.core_out),
                  split_heads(tokens_to_heads(d_mixed, context)),
                  {split_heads(d_q), split_heads(d_k), split_heads(d_v), d_x}, context);
  add_gradients(kV, x, d_v, d_x, context);
  backward_qk(a, x, d_q, d_k, d_x, context);
}

void QkvMixer::add_gradients(Projection i, TensorView x, const Tensor& d_heads, TensorView d_x,
                             Context& context) const {
  (*projections_)[i].backward(x, heads_to_tokens(d_heads, context), d_x, kernels::Accumulate::kYes,
                              context);
}

void QkvMixer::backward_qk(const Activations& a, TensorView x, const Tensor& d_q, const Tensor& d_k,
                           TensorView d_x, Context& context) const {
  const std::optional<kernels::RopeOptions> rope = core_->rope();
  if (shared_qk_) {
    const Tensor d_p(a.p.shape(), a.p.dtype());
    shared_qk_->backward(a.p, a.halo, rope, d_q, d_k, d_p, context);
    add_gradients(kQ, x, d_p, d_x, context);
  } else {
    if (rope) {
      kernels::rope_backward(split_heads(d_q), split_heads(d_q), *rope, context.stream);
      kernels::rope_backward(split_heads(d_k), split_heads(d_k), *rope, context.stream);
    }
    add_gradients(kQ, x, d_q, d_x, context);
    add_gradients(kK, x, d_k, d_x, context);
  }
}

std::unique_ptr<DecodeState> QkvMixer::make_decode_state(std::int64_t batch,
                                                         Context& context) const {
  auto state = std::make_unique<QkvDecodeState>();
  if (shared_qk_) {
    state->history = kernels::zeros(shared_qk_->history_shape(batch),
                                    context.activation_type(store_.dtype()), context.stream);
  }
  state->core = core_->make_decode_state(batch, context);
  return state;
}

void QkvMixer::extend(TensorView x, TensorView residual, TensorView y, DecodeState& state,
                      Context& context) const {
  auto& s = static_cast<QkvDecodeState&>(state);
  Activations a;
  project(x, a, &s, context);
  core_->extend(core_inputs(x, a), split_heads(a.core_out), *s.core, context);
  finish(x, a, residual, y, context);
}

}  // namespace ttt
