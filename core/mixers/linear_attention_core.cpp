#include "core/mixers/linear_attention_core.h"

#include <utility>
#include <vector>

#include "core/base/flat_range.h"
#include "core/sequence_exchange.h"
#include "kernels/copy.h"

namespace ttt {
namespace {

struct State {
  Tensor all;                           // one message between ranks
  kernels::LinearAttentionState views;  // empty: zero
};

// Rows of the batch that run together (core/sequence_exchange.h, state_groups).
struct RowGroup {
  FlatRange rows;
  State initial = {};
};

struct LinearAttentionSaved final : Saved {
  std::vector<RowGroup> groups;
};

struct LinearAttentionDecodeState final : DecodeState {
  State state;
};

State make_state(std::int64_t batch, std::int64_t heads, std::int64_t dim, DType dtype) {
  const Shape kv{batch, heads, dim, dim};
  const Shape k_sum{batch, heads, dim};
  State state;
  state.all = Tensor({kv.numel() + k_sum.numel()}, dtype);
  state.views.kv = state.all.view().slice(0, kv.numel()).reshape(kv);
  state.views.k_sum = state.all.view().slice(kv.numel(), state.all.numel()).reshape(k_sum);
  return state;
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
  const std::int64_t heads = inputs.q.size(2);
  for (const FlatRange& rows : state_groups(inputs.q.size(0), heads, context)) {
    const auto part = [&](TensorView view) { return view.slice(rows.begin, rows.end); };
    const auto state = [&] { return make_state(rows.size(), heads, head_dim_, store_.dtype()); };
    RowGroup group{rows};
    if (receives_state(context)) {
      group.initial = state();
      context.sequence->receive(group.initial.all, Neighbour::kPrevious, context.stream);
    }
    const State final_state = sends_state(context) ? state() : State{};
    kernels::linear_attention_forward(part(inputs.q), part(inputs.k), part(inputs.v), part(out),
                                      group.initial.views, final_state.views, options_,
                                      context.stream);
    if (sends_state(context)) {
      context.sequence->send(final_state.all, Neighbour::kNext, context.stream);
    }
    saved->groups.push_back(std::move(group));
  }
  return saved;
}

void LinearAttentionCore::backward(const Saved& saved, const CoreInputs& inputs, TensorView /*out*/,
                                   TensorView d_out, const CoreGradients& gradients,
                                   Context& context) const {
  const std::int64_t heads = inputs.q.size(2);
  for (const RowGroup& group : static_cast<const LinearAttentionSaved&>(saved).groups) {
    const auto part = [&](TensorView view) { return view.slice(group.rows.begin, group.rows.end); };
    const auto state = [&] {
      return make_state(group.rows.size(), heads, head_dim_, store_.dtype());
    };
    const State d_final = sends_state(context) ? state() : State{};
    if (sends_state(context)) {
      context.sequence->receive(d_final.all, Neighbour::kNext, context.stream);
    }
    const State d_initial = receives_state(context) ? state() : State{};
    kernels::linear_attention_backward(
        part(inputs.q), part(inputs.k), part(inputs.v), group.initial.views, part(d_out),
        d_final.views, part(gradients.d_q), part(gradients.d_k), part(gradients.d_v),
        d_initial.views, options_, context.stream);
    if (receives_state(context)) {
      context.sequence->send(d_initial.all, Neighbour::kPrevious, context.stream);
    }
  }
}

std::unique_ptr<DecodeState> LinearAttentionCore::make_decode_state(std::int64_t batch,
                                                                    Context& context) const {
  auto state = std::make_unique<LinearAttentionDecodeState>();
  state->state = make_state(batch, num_heads_, head_dim_, store_.dtype());
  kernels::fill(state->state.all, 0, context.stream);
  return state;
}

void LinearAttentionCore::extend(const CoreInputs& inputs, TensorView out, DecodeState& state,
                                 Context& context) const {
  const auto& s = static_cast<const LinearAttentionDecodeState&>(state);
  kernels::linear_attention_forward(inputs.q, inputs.k, inputs.v, out, s.state.views, s.state.views,
                                    options_, context.stream);
}

// The recurrent form: state update and read-out.
double LinearAttentionCore::flops_per_token(std::int64_t /*context_length*/) const {
  return 4.0 * static_cast<double>(num_heads_ * head_dim_ * head_dim_);
}

}  // namespace ttt
