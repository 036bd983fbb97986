#pragma once
// The interface of what stands in a residual branch.

#include <memory>

#include "core/context.h"

namespace ttt {

/// What backward needs of one forward; owned by the caller, so that several may be alive at once
/// (micro-batches, recomputation).
struct Saved {
  Saved() = default;
  Saved(const Saved&) = delete;
  Saved& operator=(const Saved&) = delete;
  virtual ~Saved() = default;
};

/// What a layer carries from token to token when it generates.
struct DecodeState {
  DecodeState() = default;
  DecodeState(const DecodeState&) = delete;
  DecodeState& operator=(const DecodeState&) = delete;
  virtual ~DecodeState() = default;
};

class Layer {
 public:
  Layer() = default;
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
  virtual ~Layer() = default;

  /// y = residual + f(x), [B, T, C] each; `residual` may be empty. y must not overlap with the others.
  [[nodiscard]] virtual std::unique_ptr<Saved> forward(TensorView x, TensorView residual,
                                                       TensorView y, Context& context) const = 0;
  /// y = f(x).
  [[nodiscard]] std::unique_ptr<Saved> forward(TensorView x, TensorView y, Context& context) const {
    return forward(x, {}, y, context);
  }
  /// `x` has the values that forward saw: kept by the caller, or cheap enough to compute again. Overwrites d_x
  /// [B, T, C] with dL/dx of f and adds dL/dw to every parameter's grad.
  virtual void backward(const Saved& saved, TensorView x, TensorView d_y, TensorView d_x,
                        Context& context) const = 0;

  [[nodiscard]] virtual std::unique_ptr<DecodeState> make_decode_state(std::int64_t batch,
                                                                       Context& context) const = 0;
  /// Runs n >= 1 further tokens, x, residual, y: [B, n, C], from `state` and updates it: n = prompt length is
  /// prefill, n = 1 decoding. Equals forward over the whole sequence to rounding.
  virtual void extend(TensorView x, TensorView residual, TensorView y, DecodeState& state,
                      Context& context) const = 0;
};

}  // namespace ttt
