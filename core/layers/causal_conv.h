#pragma once
// Depthwise causal convolution with its weight and bias (kernels/causal_conv.h). Of split sequences it sees a segment
// of all channels, with the halo before it, or, where the rank holds a share of the heads, whole sequences of theirs.

#include "core/context.h"
#include "core/parameters.h"

namespace ttt {

/// What the first outputs owe to a halo: an op's backward over the halo followed by zeros, as far as its window reaches.
/// It adds to the weights' grads; a bias has had its part.
struct HaloWindow {
  Tensor x;      // [B, H + n, C]: the halo [B, H, C], then zeros
  Tensor d_out;  // the same shape: zeros, then the gradient of the first n outputs

  HaloWindow(TensorView halo, TensorView d_y, Context& context);
  /// The first H rows of d_x [B, H + n, C].
  [[nodiscard]] Tensor rows_of_halo(TensorView d_x, Context& context) const;

 private:
  std::int64_t rows_;
};

class CausalConv {
 public:
  /// Registers `prefix`.weight [C, 1, W] and `prefix`.bias [C].
  CausalConv(ParameterStore& store, const std::string& prefix, std::int64_t channels,
             std::int64_t window);

  /// The inputs before x [B, T, C] that another rank holds; empty: zeros (exchange_halo). Convolutions of one input
  /// share it, and backward needs it.
  [[nodiscard]] Tensor halo(TensorView x, Context& context) const;
  /// x, y, residual: [B, T, C]; `residual` is added and may be empty.
  void forward(TensorView x, TensorView halo, TensorView residual, TensorView y,
               Context& context) const;
  /// Continues from `history` [B, W-1, C] (in-out).
  void extend(TensorView x, TensorView residual, TensorView y, TensorView history,
              Context& context) const;
  /// Overwrites d_x and adds to the grads. `d_beside` is what x has of gradient besides, or empty.
  void backward(TensorView x, TensorView halo, TensorView d_y, TensorView d_beside, TensorView d_x,
                Context& context) const;
  /// The shape of `history`.
  [[nodiscard]] Shape history_shape(std::int64_t batch) const {
    return {batch, weight_->shape[2] - 1, weight_->shape[0]};
  }

  struct Weights {
    TensorView weight, bias;
  };
  /// Those of the channels of x, which are all or this rank's share, and their grads.
  [[nodiscard]] Weights values(TensorView x, Context& context) const;
  [[nodiscard]] Weights grads(TensorView x, Context& context) const;
  /// Sends the gradient of the halo to where it came from, and adds what comes back to the end of d_x.
  void return_halo(TensorView d_halo, TensorView d_x, Context& context) const;

 private:
  Tensor backward_halo(TensorView halo, TensorView d_y, Context& context) const;

  const Parameter* weight_;
  const Parameter* bias_;
};

}  // namespace ttt
