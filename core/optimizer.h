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

  /// Update number `step` (from 0) with the summed gradient, in the order of the stream: the host learns its norm from
  /// `squares`. Parameters and moments stay as they are when the norm is not finite. `rounded` as in kernels/adamw.h.
  void update(TensorView parameters, TensorView rounded, TensorView gradients, std::int64_t step,
              Stream& stream);

  /// [1] F64: the last update's sum of squares, for `gradient_norm`.
  [[nodiscard]] TensorView squares() const { return squares_; }
  [[nodiscard]] TensorView m() const { return m_; }
  [[nodiscard]] TensorView v() const { return v_; }

 private:
  config::OptimizerConfig config_;
  std::int64_t total_steps_;
  Tensor m_, v_;
  Tensor squares_;
};

/// The norm of update number `step` before clipping. Throws kNumerical when it is not finite.
double gradient_norm(double squares, std::int64_t step);

}  // namespace ttt
