#include "core/layers/swiglu.h"

#include "kernels/activation.h"

namespace ttt {
namespace {

struct SwiGluSaved final : Saved {
  Tensor gate_up;  // [B, T, 2 I]; what the gate makes of it is computed again in backward
};

// [B, T, D] as [B T, D].
TensorView rows_of(TensorView x) { return x.reshape({x.size(0) * x.size(1), x.size(2)}); }

}  // namespace

SwiGlu::SwiGlu(ParameterStore& store, const std::string& prefix, std::int64_t channels,
               std::int64_t hidden, Initializer initializer)
    : gate_up_(store.add_stacked({prefix + ".gate_proj.weight", prefix + ".up_proj.weight"},
                                 {hidden, channels}, initializer)),
      down_(store, prefix + ".down_proj.weight", channels, hidden, initializer) {}

std::unique_ptr<Saved> SwiGlu::forward(TensorView x, TensorView residual, TensorView y,
                                       Context& context) const {
  auto saved = std::make_unique<SwiGluSaved>();
  saved->gate_up = gate_up_.forward(x, context);
  const Tensor hidden({x.size(0), x.size(1), down_.inputs()}, x.dtype());
  kernels::swiglu_forward(rows_of(saved->gate_up), rows_of(hidden), context.stream);
  down_.forward(hidden, residual, y, context);
  return saved;
}

void SwiGlu::backward(const Saved& saved, TensorView x, TensorView d_y, TensorView d_x,
                      Context& context) const {
  const auto& s = static_cast<const SwiGluSaved&>(saved);
  Tensor hidden({x.size(0), x.size(1), down_.inputs()}, d_y.dtype());
  const Tensor& d_hidden = hidden;  // the same memory, before it holds the values
  down_.backward_input(d_y, d_hidden, kernels::Accumulate::kNo, context);
  const Tensor d_gate_up(s.gate_up.shape(), d_y.dtype());
  kernels::swiglu_backward(rows_of(s.gate_up), rows_of(d_hidden), rows_of(d_gate_up),
                           rows_of(hidden), context.stream);
  down_.backward_weight(hidden, d_y, context);
  hidden = {};
  gate_up_.backward(x, d_gate_up, d_x, kernels::Accumulate::kNo, context);
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
