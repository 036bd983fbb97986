#pragma once
// The feed-forward layer: y = (silu(x W_gate^T) * (x W_up^T)) W_down^T.
// Source: arXiv:2002.05202.

#include "core/layer.h"
#include "core/layers/linear.h"

namespace ttt {

class SwiGlu final : public Layer {
 public:
  /// Registers `prefix`.{gate,up,down}_proj.weight.
  SwiGlu(ParameterStore& store, const std::string& prefix, std::int64_t channels,
         std::int64_t hidden, Initializer initializer);

  std::unique_ptr<Saved> forward(TensorView x, TensorView residual, TensorView y,
                                 Context& context) const override;
  void backward(const Saved& saved, TensorView x, TensorView d_y, TensorView d_x,
                Context& context) const override;
  [[nodiscard]] std::unique_ptr<DecodeState> make_decode_state(std::int64_t batch,
                                                               Context& context) const override;
  void extend(TensorView x, TensorView residual, TensorView y, DecodeState& state,
              Context& context) const override;

 private:
  Linear gate_up_, down_;
};

}  // namespace ttt
