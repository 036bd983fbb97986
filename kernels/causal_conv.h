#pragma once
// Depthwise causal convolution along time, with bias and no activation.
//
//   y[t, c] = bias[c] + sum_{j < W} w[c, 0, j] * x[t - (W - 1) + j, c] + residual[t, c]
//
// Tokens before the first come from `history`, the last W-1 inputs of what went before, or are zero.
//
// Dims: B batch, T tokens, C channels, W window. T may be smaller than W - 1.
// Numerics: F32 and F64; d_w and d_bias are summed in an order that does not depend on the number of threads. On CUDA
//   F32 and BF16, with F32 for w, bias and their gradients.
// Errors: kInternal when shapes or dtypes do not fit.
// Source: arXiv:2407.04620, figure 13 (Mamba backbone); ttt-lm-pytorch.

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

void causal_conv_forward(
    TensorView x,              // [B, T, C]
    TensorView w,              // [C, 1, W]
    TensorView bias,           // [C]
    TensorView history,        // [B, W-1, C]; may be empty (zeros)
    TensorView residual,       // [B, T, C]; may be empty (zeros)
    TensorView y,              // [B, T, C] out; must not alias x or residual
    TensorView final_history,  // [B, W-1, C] out; may be empty; may alias history
    Stream& stream);

/// Sequences that start from zeros (no history).
void causal_conv_backward(
    TensorView x,         // [B, T, C]
    TensorView w,         // [C, 1, W]
    TensorView d_y,       // [B, T, C]
    TensorView d_beside,  // [B, T, C]: what x has of gradient besides; may be empty
    TensorView d_x,       // [B, T, C] out; must not alias d_y or d_beside
    TensorView d_w,       // [C, 1, W] in-out, added to
    TensorView d_bias,    // [C] in-out, added to
    Stream& stream);

}  // namespace ttt::kernels
