#pragma once
// y = x W^T without bias. A parameter with its three products; the caller keeps x for backward.

#include "core/context.h"
#include "core/parameters.h"

namespace ttt {

class Linear {
 public:
  /// Registers `name` as [outputs, inputs].
  Linear(ParameterStore& store, const std::string& name, std::int64_t outputs, std::int64_t inputs,
         Initializer initializer);
  /// Uses a registered parameter whose elements are [outputs, inputs].
  explicit Linear(const Parameter& weight);

  [[nodiscard]] std::int64_t inputs() const { return inputs_; }
  [[nodiscard]] std::int64_t outputs() const { return outputs_; }
  /// y [.., outputs] = x [.., inputs] W^T + residual, which may be empty.
  void forward(TensorView x, TensorView residual, TensorView y, Context& context) const;
  /// A fresh output for x [B, T, inputs].
  [[nodiscard]] Tensor forward(TensorView x, Context& context) const;
  /// Both of those below.
  void backward(TensorView x, TensorView d_y, TensorView d_x, kernels::Accumulate accumulate,
                Context& context) const;
  /// d_x is overwritten or added to.
  void backward_input(TensorView d_y, TensorView d_x, kernels::Accumulate accumulate,
                      Context& context) const;
  /// Adds to the weight's grad.
  void backward_weight(TensorView x, TensorView d_y, Context& context) const;

 private:
  [[nodiscard]] TensorView weight(const Context& context) const;  // [outputs, inputs]

  const Parameter* weight_;
  std::int64_t outputs_;
  std::int64_t inputs_;
};

}  // namespace ttt
