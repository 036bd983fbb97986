#include "core/mixers/ttt_core.h"

#include <array>
#include <utility>
#include <vector>

#include "core/base/flat_range.h"
#include "core/base/memory.h"
#include "core/sequence_exchange.h"
#include "core/token_range.h"
#include "kernels/activation.h"
#include "kernels/copy.h"
#include "kernels/inner_learning_rate.h"

namespace ttt {
namespace {

struct TttDecodeState final : DecodeState {
  TttCore::State weights;  // at the start of the current mini-batch
  TttCore::State sums;     // accumulated steps of the current mini-batch
  std::int64_t position = 0;
};

// Row b of `state` [B, H, ...] is the parameter of these heads, or zero without one.
void broadcast(const Parameter* parameter, TensorView state, Context& context) {
  if (state.empty()) return;
  if (parameter == nullptr) {
    kernels::fill(state, 0, context.stream);
    return;
  }
  for (std::int64_t b = 0; b < state.size(0); ++b) {
    const TensorView row = state.slice(b, b + 1);
    kernels::copy(own_heads(parameter->value, context).reshape(row.shape()), row, context.stream);
  }
}

// Adds the rows of d_state [B, H, ...] to the grad of these heads, in order.
void sum_rows(TensorView d_state, const Parameter* parameter, Context& context) {
  if (parameter == nullptr) return;
  for (std::int64_t b = 0; b < d_state.size(0); ++b) {
    const TensorView row = d_state.slice(b, b + 1);
    kernels::add(row, own_heads(parameter->grad, context).reshape(row.shape()), context.stream);
  }
}

TensorView own_value(const Parameter* parameter, Context& context) {
  return parameter != nullptr ? own_heads(parameter->value, context) : TensorView{};
}
TensorView own_grad(const Parameter* parameter, Context& context) {
  return parameter != nullptr ? own_heads(parameter->grad, context) : TensorView{};
}

kernels::TttInputs rows_of(kernels::TttInputs inputs, const FlatRange& rows) {
  for (TensorView* view : {&inputs.q, &inputs.k, &inputs.v, &inputs.token_lr}) {
    *view = view->slice(rows.begin, rows.end);
  }
  return inputs;
}

kernels::TttInputGradients rows_of(kernels::TttInputGradients gradients, const FlatRange& rows) {
  for (TensorView* view : {&gradients.d_q, &gradients.d_k, &gradients.d_v, &gradients.d_token_lr}) {
    *view = view->slice(rows.begin, rows.end);
  }
  return gradients;
}

}  // namespace

// Rows of the batch that run together (core/sequence_exchange.h, state_groups).
struct TttCore::RowGroup {
  FlatRange rows;
  State initial = {}, final = {};
  kernels::TttSaved kernel = {};
};

struct TttCore::Prepared final : Saved {
  Tensor token_rate;   // [B, L, H], L the tokens of x
  Tensor rate;         // [B, T, H of this rank]: the same memory without head exchange
  Tensor token_scale;  // [K]
  std::vector<RowGroup> groups;
};

TttCore::TttCore(ParameterStore& store, const std::string& prefix,
                 const config::ModelConfig& config, std::int64_t context_length, std::int64_t layer)
    : store_(store),
      config_(config.ttt()),
      num_heads_(config.num_heads()),
      head_dim_(config.hidden_size() / config.num_heads()),
      layer_(layer),
      rope_theta_(config.rope_theta()) {
  const bool mlp = config.mixer() == config::TTT_MLP;
  options_.model = mlp ? kernels::InnerModel::kMlp : kernels::InnerModel::kLinear;
  options_.mini_batch_size =
      config_.mini_batch_size() > 0 ? config_.mini_batch_size() : context_length;
  options_.inner_norm = config_.inner_norm();
  options_.bias = config_.inner_bias();

  const std::int64_t heads = num_heads_;
  const std::int64_t dim = head_dim_;
  const Initializer normal = Initializer::normal(config.initializer_range());
  const Initializer zero = Initializer::constant(0);
  const auto add = [&](const char* name, const Shape& shape, Initializer initializer) {
    return &store.add(prefix + "." + name, shape, initializer);
  };
  if (config_.learning_rate() == config::TttConfig::LEARNED) {
    rate_ = std::make_unique<Linear>(
        *add("learnable_ttt_lr_weight", {heads, 1, config.hidden_size()}, normal));
    rate_bias_ = add("learnable_ttt_lr_bias", {heads, 1}, zero);
  }
  if (config_.token_scale() == config::TttConfig::INVERSE_PLUS_LEARNED) {
    token_offset_ = add("learnable_token_idx", {options_.mini_batch_size}, zero);
  }
  if (options_.inner_norm) {
    norm_weight_ = add("ttt_norm_weight", {heads, dim}, Initializer::constant(1));
    norm_bias_ = add("ttt_norm_bias", {heads, dim}, zero);
  }
  if (config_.initial_state() == config::TttConfig::LEARNED_STATE) {
    const std::int64_t width = mlp ? config_.mlp_expansion() * dim : dim;
    w1_ = add("W1", {heads, dim, width}, normal);
    if (options_.bias) b1_ = add("b1", {heads, 1, width}, zero);
    if (mlp) {
      w2_ = add("W2", {heads, width, dim}, normal);
      if (options_.bias) b2_ = add("b2", {heads, 1, dim}, zero);
    }
  }
}

double TttCore::rate_scale(const Context& context) const {
  const double base = config_.base_learning_rate() * context.inner_lr_multiplier;
  return rate_ ? base / static_cast<double>(head_dim_) : base;
}

TttCore::State TttCore::make_state(std::int64_t batch, std::int64_t heads) const {
  const bool mlp = options_.model == kernels::InnerModel::kMlp;
  const std::int64_t width = mlp ? config_.mlp_expansion() * head_dim_ : head_dim_;
  State state;
  const std::array<std::pair<TensorView*, Shape>, 4> parts{
      {{&state.views.w1, {batch, heads, head_dim_, width}},
       {&state.views.b1, {batch, heads, options_.bias ? 1 : 0, width}},
       {&state.views.w2, {batch, heads, mlp ? width : 0, head_dim_}},
       {&state.views.b2, {batch, heads, mlp && options_.bias ? 1 : 0, head_dim_}}}};
  std::int64_t count = 0;
  for (const auto& [view, shape] : parts) count += shape.numel();
  state.all = Tensor({count}, store_.dtype());
  std::int64_t begin = 0;
  for (const auto& [view, shape] : parts) {
    const std::int64_t end = begin + shape.numel();
    if (end > begin) *view = state.all.view().slice(begin, end).reshape(shape);
    begin = end;
  }
  return state;
}

TttCore::State TttCore::initial_state(std::int64_t batch, std::int64_t heads,
                                      Context& context) const {
  State state = make_state(batch, heads);
  broadcast(w1_, state.views.w1, context);
  broadcast(b1_, state.views.b1, context);
  broadcast(w2_, state.views.w2, context);
  broadcast(b2_, state.views.b2, context);
  return state;
}

std::optional<kernels::RopeOptions> TttCore::rope() const {
  if (!config_.rope()) return std::nullopt;
  return kernels::RopeOptions{kernels::RopePairing::kInterleaved, rope_theta_,
                              options_.mini_batch_size};
}

std::unique_ptr<TttCore::Prepared> TttCore::prepare(const CoreInputs& inputs,
                                                    std::int64_t first_position,
                                                    Context& context) const {
  const std::int64_t batch = inputs.q.size(0);
  const std::int64_t tokens = inputs.q.size(1);
  TTT_CHECK(config_.mini_batch_size() > 0 || first_position + tokens <= options_.mini_batch_size,
            "{} tokens, but the mini-batch is a whole sequence of {}", first_position + tokens,
            options_.mini_batch_size);
  auto prepared = std::make_unique<Prepared>();
  Prepared& p = *prepared;
  const DType wide = wide_type(inputs.q.dtype());
  if (rate_) {
    p.token_rate = Tensor({batch, inputs.x.size(1), num_heads_}, wide);
    rate_->forward(inputs.x, {}, p.token_rate, context);
    const TensorView rows = p.token_rate.view().reshape({batch * inputs.x.size(1), num_heads_});
    kernels::inner_learning_rate_forward(rows, rate_bias_->value.reshape({num_heads_}), rows,
                                         rate_scale(context), context.stream);
    p.rate = tokens_to_heads(p.token_rate, context);
  } else {
    p.rate = Tensor({batch, tokens, inputs.q.size(2)}, wide);
    kernels::fill(p.rate, rate_scale(context), context.stream);
  }
  p.token_scale = Tensor({options_.mini_batch_size}, wide);
  if (config_.token_scale() == config::TttConfig::ONE) {
    kernels::fill(p.token_scale, 1, context.stream);
  } else {
    kernels::token_scale_forward(token_offset_ != nullptr ? token_offset_->value : TensorView{},
                                 p.token_scale, context.stream);
  }
  return prepared;
}

kernels::TttInputs TttCore::kernel_inputs(const CoreInputs& inputs, const Prepared& p,
                                          Context& context) const {
  return {inputs.q,
          inputs.k,
          inputs.v,
          p.rate,
          p.token_scale,
          own_value(norm_weight_, context),
          own_value(norm_bias_, context)};
}

void TttCore::record_inner_losses(const kernels::TttInputs& kernel, const Prepared& p,
                                  Context& context) const {
  const std::int64_t batch = kernel.q.size(0);
  const std::int64_t tokens = kernel.q.size(1);
  const std::int64_t heads = kernel.q.size(2);
  const Tensor losses({3, batch, tokens, heads}, DType::kF64);
  for (const RowGroup& group : p.groups) {
    const kernels::TttInputs group_kernel = rows_of(kernel, group.rows);
    const std::int64_t count = group.rows.size();
    const Tensor part({3, count, tokens, heads}, DType::kF64);
    kernels::ttt_inner_loss(group_kernel, options_, group.initial.views, part, context.stream);
    if (receives_state(context)) {  // row 0 is about the sequence's start, not the segment's
      const Tensor from_start(part.shape(), DType::kF64);
      kernels::ttt_inner_loss(group_kernel, options_, initial_state(count, heads, context).views,
                              from_start, context.stream);
      kernels::copy(from_start.view().slice(0, 1), part.view().slice(0, 1), context.stream);
    }
    for (std::int64_t kind = 0; kind < 3; ++kind) {
      const TensorView all_rows =
          losses.view().slice(kind, kind + 1).reshape({batch, tokens, heads});
      kernels::copy(part.view().slice(kind, kind + 1).reshape({count, tokens, heads}),
                    all_rows.slice(group.rows.begin, group.rows.end), context.stream);
    }
  }
  const memory::Scope scope({"inner losses"}, memory::Place::kPinned);  // the host reads them
  Tensor rows({3 * batch, tokens, heads}, DType::kF64);
  kernels::copy(losses.view().reshape(rows.shape()), rows, context.stream);
  rows = heads_to_tokens(rows, context);
  context.stream.synchronize();
  context.inner_losses->record(layer_, rows.view().reshape({3, batch, rows.size(1), rows.size(2)}));
}

std::unique_ptr<Saved> TttCore::forward(const CoreInputs& inputs, TensorView out,
                                        Context& context) const {
  std::unique_ptr<Prepared> p = prepare(inputs, 0, context);
  const std::int64_t heads = inputs.q.size(2);
  const kernels::TttInputs kernel = kernel_inputs(inputs, *p, context);
  for (const FlatRange& rows : state_groups(inputs.q.size(0), heads, context)) {
    RowGroup group{rows};
    if (receives_state(context)) {
      group.initial = make_state(rows.size(), heads);
      context.sequence->receive(group.initial.all, Neighbour::kPrevious, context.stream);
    } else {
      group.initial = initial_state(rows.size(), heads, context);
    }
    group.final = make_state(rows.size(), heads);
    kernels::ttt_forward(rows_of(kernel, rows), options_, group.initial.views,
                         out.slice(rows.begin, rows.end), group.final.views, &group.kernel,
                         context.stream);
    if (sends_state(context)) {
      context.sequence->send(group.final.all, Neighbour::kNext, context.stream);
    }
    p->groups.push_back(std::move(group));
  }
  if (context.inner_losses != nullptr) record_inner_losses(kernel, *p, context);
  return p;
}

const TttCore::State& TttCore::final_state(const Saved& saved) {
  const auto& p = static_cast<const Prepared&>(saved);
  TTT_CHECK(p.groups.size() == 1, "{} states of a split batch", p.groups.size());
  return p.groups.front().final;
}

void TttCore::backward(const Saved& saved, const CoreInputs& inputs, TensorView /*out*/,
                       TensorView d_out, const CoreGradients& gradients, Context& context) const {
  const auto& p = static_cast<const Prepared&>(saved);
  const std::int64_t batch = inputs.q.size(0);
  const std::int64_t heads = inputs.q.size(2);
  const DType wide = wide_type(d_out.dtype());
  Tensor d_rate({batch, inputs.q.size(1), heads}, wide);
  const Tensor d_token_scale = kernels::zeros({options_.mini_batch_size}, wide, context.stream);
  const kernels::TttInputs kernel = kernel_inputs(inputs, p, context);
  const kernels::TttInputGradients d_kernel{gradients.d_q,
                                            gradients.d_k,
                                            gradients.d_v,
                                            d_rate,
                                            d_token_scale,
                                            own_grad(norm_weight_, context),
                                            own_grad(norm_bias_, context)};
  for (const RowGroup& group : p.groups) {
    State d_final;  // zero after the last token
    if (sends_state(context)) {
      d_final = make_state(group.rows.size(), heads);
      context.sequence->receive(d_final.all, Neighbour::kNext, context.stream);
    }
    const State d_initial = make_state(group.rows.size(), heads);
    kernels::ttt_backward(rows_of(kernel, group.rows), options_, group.initial.views, group.kernel,
                          d_out.slice(group.rows.begin, group.rows.end), d_final.views,
                          rows_of(d_kernel, group.rows), d_initial.views, context.stream);
    if (receives_state(context)) {
      context.sequence->send(d_initial.all, Neighbour::kPrevious, context.stream);
    } else {
      sum_rows(d_initial.views.w1, w1_, context);
      sum_rows(d_initial.views.b1, b1_, context);
      sum_rows(d_initial.views.w2, w2_, context);
      sum_rows(d_initial.views.b2, b2_, context);
    }
  }
  if (token_offset_ != nullptr) {
    kernels::token_scale_backward(token_offset_->value, d_token_scale, token_offset_->grad,
                                  context.stream);
  }
  if (rate_) {
    d_rate = heads_to_tokens(d_rate, context);
    const Shape rows{batch * inputs.x.size(1), num_heads_};
    kernels::inner_learning_rate_backward(
        p.token_rate.view().reshape(rows), d_rate.view().reshape(rows), d_rate.view().reshape(rows),
        rate_bias_->grad.reshape({num_heads_}), rate_scale(context), context.stream);
    rate_->backward(inputs.x, d_rate, gradients.d_x, kernels::Accumulate::kYes, context);
  }
}

std::unique_ptr<DecodeState> TttCore::make_decode_state(std::int64_t batch,
                                                        Context& context) const {
  auto state = std::make_unique<TttDecodeState>();
  state->weights = initial_state(batch, num_heads_, context);
  state->sums = make_state(batch, num_heads_);
  kernels::fill(state->sums.all, 0, context.stream);
  return state;
}

// Full mini-batches that start at a boundary run in the dual form; of others, what is there of each in one call.
void TttCore::extend(const CoreInputs& inputs, TensorView out, DecodeState& state,
                     Context& context) const {
  auto& s = static_cast<TttDecodeState&>(state);
  const std::int64_t tokens = inputs.q.size(1);
  const std::int64_t mini_batch = options_.mini_batch_size;
  const std::unique_ptr<Prepared> p = prepare(inputs, s.position, context);
  const kernels::TttInputs all = kernel_inputs(inputs, *p, context);
  for (std::int64_t t = 0; t < tokens;) {
    const std::int64_t place = s.position % mini_batch;
    const std::int64_t whole = place == 0 ? (tokens - t) / mini_batch * mini_batch : 0;
    const std::int64_t count = whole > 0 ? whole : std::min(tokens - t, mini_batch - place);
    const auto part = [&](TensorView x) { return TokenRange(x, t, t + count, context.stream); };
    const TokenRange q = part(all.q), k = part(all.k), v = part(all.v), rate = part(all.token_lr);
    const Tensor part_out = count < tokens ? Tensor(q.view().shape(), out.dtype()) : Tensor();
    const TensorView y = count < tokens ? part_out.view() : out;
    const kernels::TttInputs kernel{q.view(),       k.view(),        v.view(),     rate.view(),
                                    p->token_scale, all.norm_weight, all.norm_bias};
    if (whole > 0) {
      kernels::ttt_forward(kernel, options_, s.weights.views, y, s.weights.views, nullptr,
                           context.stream);
    } else {
      kernels::ttt_step(kernel, options_, place, s.weights.views, s.sums.views, y, context.stream);
    }
    if (count < tokens) put_token_range(part_out, out, t, context.stream);
    t += count;
    s.position += count;
  }
}

// Products only: dual form with full K x K tiles (docs/numerics.md, "TTT").
double TttCore::flops_per_token(std::int64_t /*context_length*/) const {
  const auto channels = static_cast<double>(num_heads_ * head_dim_);
  const auto dim = static_cast<double>(head_dim_);
  const auto mini_batch = static_cast<double>(options_.mini_batch_size);
  const double rate = rate_ ? 2.0 * static_cast<double>(num_heads_) * channels : 0.0;
  if (options_.model == kernels::InnerModel::kLinear) {
    return rate + 6.0 * channels * dim + 4.0 * mini_batch * channels;
  }
  const auto width = static_cast<double>(config_.mlp_expansion()) * dim;
  return rate + 14.0 * channels * width +
         mini_batch * (4.0 * channels + 4.0 * channels * width / dim);
}

}  // namespace ttt
