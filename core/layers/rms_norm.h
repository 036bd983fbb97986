#pragma once
// RMSNorm with its weight (kernels/norm.h).

#include "core/context.h"
#include "core/parameters.h"

namespace ttt {

class RmsNorm {
 public:
  RmsNorm(ParameterStore& store, const std::string& name, std::int64_t channels, double epsilon);

  /// x, y: [.., C]; rstd: one value a row, for backward, or empty.
  void forward(TensorView x, TensorView y, TensorView rstd, Context& context) const;
  /// Overwrites d_x (may alias d_y) and adds to the weight's grad. `d_beside` is what x has of gradient besides, or
  /// empty.
  void backward(TensorView x, TensorView rstd, TensorView d_y, TensorView d_beside, TensorView d_x,
                Context& context) const;

 private:
  const Parameter* weight_;
  std::int64_t channels_;
  double epsilon_;
};

}  // namespace ttt
