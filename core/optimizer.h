#pragma once
// The outer update on flat buffers: global-norm clipping and AdamW with decay on every parameter.

#include <vector>

#include "configs/run.pb.h"
#include "core/base/flat_range.h"
#include "core/base/stream.h"
#include "core/base/tensor.h"
#include "kernels/adamw.h"

namespace ttt {

class Optimizer {
 public:
  /// Zero moments for `num_elements` parameters of `dtype`.
  Optimizer(const config::OptimizerConfig& config, std::int64_t total_steps,
            std::int64_t num_elements, DType dtype);
  /// For parameters of which only `ranges` are updated here; m and v are [their sizes' sum], one after the other.
  Optimizer(const config::OptimizerConfig& config, std::int64_t total_steps,
            std::vector<FlatRange> ranges, DType dtype);

  /// What decides whether an update is made (kernels/adamw.h). All ranks give the same.
  struct Evidence {
    TensorView squares;      // [1] F64: the sum of the squares of all gradients
    TensorView losses = {};  // [k] F64, whose sum is the loss; empty: does not decide
    kernels::UpdateLimits limits = {};
  };
  /// Update of step `step` (from 0) with the summed gradient, in the order of the stream; the gradients need be there in
  /// the ranges only. Parameters, moments and the count of updates, which corrects the moments' bias, stay as they are
  /// when it is not made; the host learns that from `decision()`. `rounded` as in kernels/adamw.h.
  void update(TensorView parameters, TensorView rounded, TensorView gradients,
              const Evidence& evidence, std::int64_t step, Stream& stream);

  /// The same where `gradients` are all there are and nothing else decides; `squares()` are theirs.
  void update(TensorView parameters, TensorView rounded, TensorView gradients, std::int64_t step,
              Stream& stream);
  [[nodiscard]] TensorView squares() const { return squares_; }
  /// Of the last update: [kernels::kDecisionSize] F64.
  [[nodiscard]] TensorView decision() const { return decision_; }
  /// Goes on after so many updates. Nothing may be queued.
  void set_num_updates(std::int64_t count);

  [[nodiscard]] const std::vector<FlatRange>& ranges() const { return ranges_; }
  [[nodiscard]] TensorView m() const { return m_; }
  [[nodiscard]] TensorView v() const { return v_; }

 private:
  config::OptimizerConfig config_;
  std::int64_t total_steps_;
  std::vector<FlatRange> ranges_;
  Tensor m_, v_;
  Tensor squares_;
  Tensor decision_;
};

/// The norm of update number `step` before clipping. Throws kNumerical when it is not finite.
double gradient_norm(double squares, std::int64_t step);

}  // namespace ttt
