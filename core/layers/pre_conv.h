#pragma once
// h + conv(RMSNorm(h)), the branch before the mixer (kernels/norm_conv.h). Of split sequences it sees a segment of all
// channels, with the rows of h before it.
// Source: arXiv:2407.04620 figure 13.

#include "core/layers/causal_conv.h"

namespace ttt {

class PreConv {
 public:
  /// Registers `prefix`.norm.weight [C] and `prefix`.conv, weight [C, 1, W] and bias [C].
  PreConv(ParameterStore& store, const std::string& prefix, std::int64_t channels,
          std::int64_t window, double epsilon);

  /// The rows before h [B, T, C] that another rank holds, for forward and backward; empty: zeros.
  [[nodiscard]] Tensor halo(TensorView h, Context& context) const { return conv_.halo(h, context); }
  /// h, y: [B, T, C].
  void forward(TensorView h, TensorView halo, TensorView y, Context& context) const;
  /// Continues from `history` [B, W-1, C] (in-out), the last rows of h.
  void extend(TensorView h, TensorView y, TensorView history, Context& context) const;
  /// Overwrites d_h and adds to the grads.
  void backward(TensorView h, TensorView halo, TensorView d_y, TensorView d_h,
                Context& context) const;
  /// The shape of `history`.
  [[nodiscard]] Shape history_shape(std::int64_t batch) const { return conv_.history_shape(batch); }

 private:
  void run_backward(TensorView h, TensorView d_y, TensorView d_h, TensorView d_bias,
                    Context& context) const;
  Tensor backward_halo(TensorView halo, TensorView d_y, Context& context) const;

  const Parameter* norm_weight_;
  CausalConv conv_;
  double epsilon_;
};

}  // namespace ttt
