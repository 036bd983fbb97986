#pragma once
// The outer update on flat buffers: global-norm clipping and AdamW with decay on every parameter.

#include "configs/run.pb.h"
#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt {

class Optimizer {
 public:
  /// Zero moments for `num_elements` parameters of `dtype`.
  Optimizer(const config::OptimizerConfig& config, std::int64_t total_steps,
            std::int64_t num_elements, DType dtype);

  /// Update number `step` (from 0) with the summed gradient. Returns its norm before clipping.
  /// Throws kNumerical, leaving the parameters alone, when the norm is not finite.
  double update(TensorView parameters, TensorView gradients, std::int64_t step, Stream& stream);

  [[nodiscard]] TensorView m() const { return m_; }
  [[nodiscard]] TensorView v() const { return v_; }

 private:
  config::OptimizerConfig config_;
  std::int64_t total_steps_;
  Tensor m_, v_;
};

}  // namespace ttt
