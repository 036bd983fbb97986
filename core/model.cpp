#include "core/model.h"

#include <algorithm>
#include <deque>

#include "core/base/memory.h"
#include "core/sequence_exchange.h"
#include "kernels/copy.h"
#include "kernels/embedding.h"
#include "kernels/head_cross_entropy.h"

namespace ttt {
namespace {

// Kernels alone touch them.
constexpr memory::Purpose kActivations{
    "activations",
    "lower train.micro_batch_size, set train.recompute_blocks = true or raise "
    "parallel.sequence_ranks"};

// The CPU's own models may run beside a device's.
memory::Place place_of(const Context& context) {
  return context.stream.device() == Device::kCuda ? memory::Place::kDevice : memory::Place::kShared;
}

struct ModelDecodeState final : DecodeState {
  std::vector<std::unique_ptr<DecodeState>> blocks;
};

}  // namespace

void set_row_weights(std::span<const double> mask, std::int64_t rows, std::span<double> weight) {
  double sum = 0;
  for (const double m : mask) sum += m;
  const double scale = static_cast<double>(rows) * std::max(sum, 1e-10);
  for (std::size_t t = 0; t < mask.size(); ++t) weight[t] = mask[t] / scale;
}

LanguageModel::LanguageModel(const config::ModelConfig& config, std::int64_t context_length)
    : config_(config) {
  const Initializer normal = Initializer::normal(config.initializer_range());
  const Shape table{config.vocab_size(), config.hidden_size()};
  embedding_ = &store_.add("model.embed_tokens.weight", table, normal);
  for (std::int64_t i = 0; i < config.num_layers(); ++i) {
    begins_.push_back(store_.num_elements());
    blocks_.push_back(std::make_unique<Block>(store_, fmt::format("model.layers.{}", i), config,
                                              context_length, i));
  }
  begins_.push_back(store_.num_elements());
  final_norm_ = std::make_unique<RmsNorm>(store_, "model.norm.weight", config.hidden_size(),
                                          config.rms_norm_epsilon());
  head_ = config.tie_embeddings() ? embedding_ : &store_.add("lm_head.weight", table, normal);
}

Tensor LanguageModel::embed(TensorView ids, Context& context) const {
  const std::int64_t tokens = ids.numel();
  Tensor h({ids.size(0), ids.size(1), config_.hidden_size()},
           context.activation_type(store_.dtype()));
  kernels::embedding_forward(ids.reshape({tokens}), embedding_->value,
                             h.view().reshape({tokens, config_.hidden_size()}), context.stream);
  return h;
}

Tensor LanguageModel::encode(TensorView ids, Context& context) const {
  Tensor h = embed(ids, context);
  for (const auto& block : blocks_) {
    Tensor next(h.shape(), h.dtype());
    (void)block->forward(h, next, context);
    h = next;
  }
  Tensor normed(h.shape(), h.dtype());
  final_norm_->forward(h, normed, {}, context);
  return normed;
}

std::vector<FlatRange> LanguageModel::buckets(std::int64_t min_elements) const {
  std::vector<FlatRange> result;
  std::int64_t end = store_.num_elements();
  for (std::size_t i = begins_.size(); i-- > 0;) {
    if (end - begins_[i] < min_elements || end == begins_[i]) continue;
    result.push_back({begins_[i], end});
    end = begins_[i];
  }
  result.push_back({0, end});
  std::ranges::reverse(result);
  return result;
}

void LanguageModel::forward_backward(const TokenBatch& batch, TensorView nll, bool recompute_blocks,
                                     Context& context) const {
  const memory::Scope scope(kActivations, place_of(context));
  const std::int64_t tokens = batch.ids.numel();
  const std::int64_t channels = config_.hidden_size();
  const auto before_reading = [&](std::int64_t end) {
    if (context.observer != nullptr) context.observer->before_reading(end, context.stream);
  };
  const auto after_gradients = [&](std::int64_t begin) {
    if (context.observer != nullptr) context.observer->after_gradients(begin, context.stream);
  };
  before_reading(begins_.front());
  std::vector<Tensor> inputs{embed(batch.ids, context)};  // inputs[i] enters block i
  std::vector<std::unique_ptr<Saved>> saved;
  std::deque<ReplayedExchange> replayed;  // of each block, where its forward runs again
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    before_reading(begins_[i + 1]);
    Tensor next(inputs.back().shape(), inputs.back().dtype());
    Context block_context = context;
    if (recompute_blocks && context.sequence != nullptr) {
      block_context.sequence = &replayed.emplace_back(*context.sequence);
    }
    auto block_saved = blocks_[i]->forward(inputs.back(), next, block_context);
    if (recompute_blocks) block_saved.reset();
    saved.push_back(std::move(block_saved));
    inputs.push_back(next);
  }
  before_reading(store_.num_elements());
  const Shape& shape = inputs.back().shape();
  const DType dtype = inputs.back().dtype();
  Tensor normed(shape, dtype);
  const Tensor rstd({tokens}, wide_type(dtype));
  final_norm_->forward(inputs.back(), normed, rstd, context);

  Tensor d_h(shape, dtype);
  const Shape rows{tokens, channels};
  kernels::head_cross_entropy(normed.view().reshape(rows), head_->operand(context.precision),
                              batch.targets.reshape({tokens}), batch.token_weight.reshape({tokens}),
                              nll.reshape({tokens}), d_h.view().reshape(rows), head_->grad,
                              context.precision, context.stream);
  normed = {};
  final_norm_->backward(inputs.back(), rstd, d_h, {}, d_h, context);
  after_gradients(begins_.back());

  Tensor d_previous(shape, dtype);
  for (std::size_t i = blocks_.size(); i-- > 0;) {
    if (recompute_blocks) {
      Context again = context;
      if (context.sequence != nullptr) {
        replayed.back().replay();
        again.sequence = &replayed.back();
      }
      saved[i] = blocks_[i]->forward(inputs[i], inputs[i + 1], again);
      if (context.sequence != nullptr) replayed.pop_back();
    }
    blocks_[i]->backward(*saved[i], inputs[i], d_h, d_previous, context);
    after_gradients(begins_[i]);
    saved[i].reset();
    inputs.pop_back();
    std::swap(d_h, d_previous);
  }
  kernels::embedding_backward(batch.ids.reshape({tokens}), d_h.view().reshape(rows),
                              embedding_->grad, context.stream);
  after_gradients(0);
}

void LanguageModel::evaluate(const TokenBatch& batch, TensorView nll, Context& context) const {
  const memory::Scope scope(kActivations, place_of(context));
  const std::int64_t tokens = batch.ids.numel();
  const Tensor hidden = encode(batch.ids, context);
  kernels::head_cross_entropy(hidden.view().reshape({tokens, config_.hidden_size()}),
                              head_->operand(context.precision), batch.targets.reshape({tokens}),
                              batch.token_weight.reshape({tokens}), nll.reshape({tokens}), {}, {},
                              context.precision, context.stream);
}

Tensor LanguageModel::head_logits(const Tensor& hidden, Context& context) const {
  return Linear(*head_).forward(hidden, context);
}

Tensor LanguageModel::logits(TensorView ids, Context& context) const {
  return head_logits(encode(ids, context), context);
}

std::unique_ptr<DecodeState> LanguageModel::make_decode_state(std::int64_t batch,
                                                              Context& context) const {
  TTT_CHECK(context.sequence == nullptr, "generation runs on whole sequences");
  auto state = std::make_unique<ModelDecodeState>();
  for (const auto& block : blocks_)
    state->blocks.push_back(block->make_decode_state(batch, context));
  return state;
}

Tensor LanguageModel::extend(TensorView ids, DecodeState& state, bool all_logits,
                             Context& context) const {
  auto& s = static_cast<ModelDecodeState&>(state);
  const std::int64_t batch = ids.size(0);
  const std::int64_t tokens = ids.size(1);
  const std::int64_t channels = config_.hidden_size();
  Tensor h = embed(ids, context);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    Tensor next(h.shape(), h.dtype());
    blocks_[i]->extend(h, next, *s.blocks[i], context);
    h = next;
  }
  if (!all_logits) {
    Tensor last({batch, 1, channels}, h.dtype());
    for (std::int64_t b = 0; b < batch; ++b) {
      kernels::copy(h.view()
                        .reshape({batch * tokens, channels})
                        .slice((b + 1) * tokens - 1, (b + 1) * tokens),
                    last.view().reshape({batch, channels}).slice(b, b + 1), context.stream);
    }
    h = last;
  }
  const Tensor normed(h.shape(), h.dtype());
  final_norm_->forward(h, normed, {}, context);
  return head_logits(normed, context);
}

double LanguageModel::flops_per_token(std::int64_t context_length) const {
  const auto channels = static_cast<double>(config_.hidden_size());
  double flops = 2.0 * channels * static_cast<double>(config_.vocab_size());
  for (const auto& block : blocks_) flops += block->mixer().core().flops_per_token(context_length);
  // Every weight matrix of a block serves one multiply-add a token. The embedding, the head and
  // the TTT state (counted by the core) are left out here.
  for (const Parameter& parameter : store_.all()) {
    const std::string& name = parameter.name;
    if (name.ends_with("_proj.weight") || name.find("conv") != std::string::npos) {
      flops += 2.0 * static_cast<double>(parameter.shape.numel());
    }
  }
  return flops;
}

}  // namespace ttt
