#pragma once
// Depthwise causal convolution with its weight and bias (kernels/causal_conv.h).

#include "core/context.h"
#include "core/parameters.h"

namespace ttt {

class CausalConv {
 public:
  /// Registers `prefix`.weight [C, 1, W] and `prefix`.bias [C].
  CausalConv(ParameterStore& store, const std::string& prefix, std::int64_t channels,
             std::int64_t window);

  /// x, y: [B, T, C].
  void forward(TensorView x, TensorView y, Context& context) const;
  /// Continues from `history` [B, W-1, C] (in-out).
  void extend(TensorView x, TensorView y, TensorView history, Context& context) const;
  /// Overwrites d_x and adds to the grads.
  void backward(TensorView x, TensorView d_y, TensorView d_x, Context& context) const;
  /// The shape of `history`.
  [[nodiscard]] Shape history_shape(std::int64_t batch) const {
    return {batch, weight_->shape[2] - 1, weight_->shape[0]};
  }

 private:
  const Parameter* weight_;
  const Parameter* bias_;
};

}  // namespace ttt
