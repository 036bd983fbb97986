#include "core/mixers/attention_core.h"

#include <algorithm>
#include <cmath>

#include "kernels/attention.h"
#include "kernels/copy.h"

namespace ttt {
namespace {

struct AttentionSaved final : Saved {
  Tensor lse;  // [B, H, T]
};

// Caches [B, capacity, G, F] of which the first `length` tokens are filled.
struct AttentionDecodeState final : DecodeState {
  Tensor keys, values;
  std::int64_t length = 0;
};

// Appends `fresh` [B, n, G, F] after `length` tokens of `cache`, which grows by doubling.
void append(Tensor& cache, TensorView fresh, std::int64_t length, Stream& stream) {
  const std::int64_t batch = fresh.size(0);
  const std::int64_t row = fresh.size(2) * fresh.size(3);
  const std::int64_t needed = length + fresh.size(1);
  const std::int64_t capacity = cache.empty() ? 0 : cache.size(1);
  if (needed > capacity) {
    Tensor larger({batch, std::max(needed, 2 * capacity), fresh.size(2), fresh.size(3)},
                  fresh.dtype());
    for (std::int64_t b = 0; b < batch && length > 0; ++b) {
      kernels::copy(cache.view().slice(b, b + 1).reshape({capacity, row}).slice(0, length),
                    larger.view().slice(b, b + 1).reshape({larger.size(1), row}).slice(0, length),
                    stream);
    }
    cache = larger;
  }
  for (std::int64_t b = 0; b < batch; ++b) {
    kernels::copy(fresh.slice(b, b + 1).reshape({fresh.size(1), row}),
                  cache.view().slice(b, b + 1).reshape({cache.size(1), row}).slice(length, needed),
                  stream);
  }
}

// The first `length` tokens of one sequence's cache, as a batch of one.
TensorView filled(const Tensor& cache, std::int64_t b, std::int64_t length) {
  const Shape all{cache.size(1), cache.size(2), cache.size(3)};
  return cache.view().slice(b, b + 1).reshape(all).slice(0, length).reshape(
      {1, length, cache.size(2), cache.size(3)});
}

}  // namespace

AttentionCore::AttentionCore(const ParameterStore& store, const config::ModelConfig& config)
    : store_(store),
      num_heads_(config.num_heads()),
      num_kv_heads_(config.attention().num_kv_heads() > 0 ? config.attention().num_kv_heads()
                                                          : config.num_heads()),
      head_dim_(config.hidden_size() / config.num_heads()),
      scale_(1.0 / std::sqrt(static_cast<double>(head_dim_))) {
  rope_.pairing = config.attention().rope_pairing() == config::AttentionConfig::HALVES
                      ? kernels::RopePairing::kHalves
                      : kernels::RopePairing::kInterleaved;
  rope_.base = config.rope_theta();
}

std::unique_ptr<Saved> AttentionCore::forward(const CoreInputs& inputs, TensorView out,
                                              Context& context) const {
  auto saved = std::make_unique<AttentionSaved>();
  saved->lse =
      Tensor({inputs.q.size(0), inputs.q.size(2), inputs.q.size(1)}, wide_type(inputs.q.dtype()));
  kernels::attention_forward(inputs.q, inputs.k, inputs.v, out, saved->lse, scale_, context.stream);
  return saved;
}

void AttentionCore::backward(const Saved& saved, const CoreInputs& inputs, TensorView out,
                             TensorView d_out, const CoreGradients& gradients,
                             Context& context) const {
  const auto& s = static_cast<const AttentionSaved&>(saved);
  kernels::attention_backward(inputs.q, inputs.k, inputs.v, out, s.lse, d_out, gradients.d_q,
                              gradients.d_k, gradients.d_v, scale_, context.stream);
}

std::unique_ptr<DecodeState> AttentionCore::make_decode_state(std::int64_t /*batch*/,
                                                              Context& /*context*/) const {
  return std::make_unique<AttentionDecodeState>();
}

void AttentionCore::extend(const CoreInputs& inputs, TensorView out, DecodeState& state,
                           Context& context) const {
  auto& s = static_cast<AttentionDecodeState&>(state);
  append(s.keys, inputs.k, s.length, context.stream);
  append(s.values, inputs.v, s.length, context.stream);
  s.length += inputs.q.size(1);
  for (std::int64_t b = 0; b < inputs.q.size(0); ++b) {
    kernels::attention_forward(inputs.q.slice(b, b + 1), filled(s.keys, b, s.length),
                               filled(s.values, b, s.length), out.slice(b, b + 1), {}, scale_,
                               context.stream);
  }
}

// A query attends to half of the context on average.
double AttentionCore::flops_per_token(std::int64_t context_length) const {
  return 2.0 * static_cast<double>(context_length) * static_cast<double>(num_heads_ * head_dim_);
}

}  // namespace ttt
