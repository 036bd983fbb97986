#include "core/layers/swiglu.h"

#include "kernels/activation.h"

namespace ttt {
namespace {

struct SwiGluSaved final : Saved {
  Tensor gate, up;  // [B, T, I]; their product is computed again in backward
};

}  // namespace

SwiGlu::SwiGlu(ParameterStore& store, const std::string& prefix, std::int64_t channels,
               std::int64_t hidden, Initializer initializer)
    : gate_(store, prefix + ".gate_proj.weight", hidden, channels, initializer),
      up_(store, prefix + ".up_proj.weight", hidden, channels, initializer),
      down_(store, prefix + ".down_proj.weight", channels, hidden, initializer) {}

std::unique_ptr<Saved> SwiGlu::forward(TensorView x, TensorView residual, TensorView y,
                                       Context& context) const {
  auto saved = std::make_unique<SwiGluSaved>();
  saved->gate = gate_.forward(x, context);
  saved->up = up_.forward(x, context);
  const Tensor hidden(saved->gate.shape(), x.dtype());
  kernels::gated_forward(kernels::Activation::kSilu, saved->gate, saved->up, hidden,
                         context.stream);
  down_.forward(hidden, residual, y, context);
  return saved;
}

void SwiGlu::backward(const Saved& saved, TensorView x, TensorView d_y, TensorView d_x,
                      Context& context) const {
  const auto& s = static_cast<const SwiGluSaved&>(saved);
  const Tensor hidden(s.gate.shape(), d_y.dtype());
  kernels::gated_forward(kernels::Activation::kSilu, s.gate, s.up, hidden, context.stream);
  const Tensor d_hidden(s.gate.shape(), d_y.dtype());
  down_.backward(hidden, d_y, d_hidden, kernels::Accumulate::kNo, context);
  const Tensor& d_gate = hidden;  // reused: the product is no longer needed
  kernels::gated_backward(kernels::Activation::kSilu, s.gate, s.up, d_hidden, d_gate, d_hidden,
                          context.stream);
  gate_.backward(x, d_gate, d_x, kernels::Accumulate::kNo, context);
  up_.backward(x, d_hidden, d_x, kernels::Accumulate::kYes, context);
}

std::unique_ptr<DecodeState> SwiGlu::make_decode_state(std::int64_t /*batch*/,
                                                       Context& /*context*/) const {
  return std::make_unique<DecodeState>();  // every token stands alone
}

void SwiGlu::extend(TensorView x, TensorView residual, TensorView y, DecodeState& /*state*/,
                    Context& context) const {
  (void)forward(x, residual, y, context);
}

}  // namespace ttt
