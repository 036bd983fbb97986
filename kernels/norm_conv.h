#pragma once
// A residual branch of RMSNorm (kernels/norm.h) and a depthwise causal convolution (kernels/causal_conv.h) in one pass:
// the normed input exists for a few rows at a time only.
//
//   y = x + conv(RMSNorm(x; norm_w); w, bias)
//
// Tokens before the first come from `history`, the last W-1 rows of x before it, or are zero, which are normed to zero.
//
// Dims: B batch, T tokens, C channels, W window. T may be smaller than W - 1.
// Numerics: F32 and F64, in the order of additions of the two ops; gradients of norm_w, w and bias are summed in an order
//   that does not depend on the number of threads. On CUDA F32 and BF16, with F32 for norm_w, w, bias and their gradients.
// Errors: kInternal when shapes or dtypes do not fit.
// Source: arXiv:2407.04620, figure 13 (Mamba backbone); ttt-lm-pytorch.

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

void norm_conv_forward(
    TensorView x,              // [B, T, C]
    TensorView norm_w,         // [C]
    TensorView w,              // [C, 1, W]
    TensorView bias,           // [C]
    TensorView history,        // [B, W-1, C]; may be empty (zeros)
    TensorView y,              // [B, T, C] out; must not alias x
    TensorView final_history,  // [B, W-1, C] out; may be empty; may alias history
    double epsilon, Stream& stream);

/// Sequences that start from zeros (no history).
void norm_conv_backward(TensorView x,         // [B, T, C]
                        TensorView norm_w,    // [C]
                        TensorView w,         // [C, 1, W]
                        TensorView d_y,       // [B, T, C]
                        TensorView d_x,       // [B, T, C] out; must not alias d_y
                        TensorView d_norm_w,  // [C] in-out, added to
                        TensorView d_w,       // [C, 1, W] in-out, added to
                        TensorView d_bias,    // [C] in-out, added to
                        double epsilon, Stream& stream);

}  // namespace ttt::kernels
