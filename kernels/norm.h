#pragma once
// RMSNorm and LayerNorm over the last dimension.
//
//   RMSNorm:   y = w * x * rstd,            rstd = 1 / sqrt(mean(x^2) + epsilon)
//   LayerNorm: y = w * (x - mean) * rstd + b, rstd = 1 / sqrt(var(x) + epsilon), var biased
//   with a gate: y = gelu_tanh(gate) * (w * (x - mean) * rstd + b)
//
// Dims: N rows, C channels.
// Numerics: F32 and F64; statistics of F32 in fp32 or wider. Rows are independent; d_w and d_b sum over rows in a
//   fixed order that does not depend on the number of threads.
//   On CUDA x, y and their gradients are F32 or BF16, all else F32.
// Errors: kInternal when shapes or dtypes do not fit.
// Source: arXiv:1910.07467 (RMSNorm), arXiv:1607.06450 (LayerNorm); the gate: arXiv:2407.04620 figure 13.

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

void rms_norm_forward(TensorView x,     // [N, C]
                      TensorView w,     // [C]
                      TensorView y,     // [N, C] out
                      TensorView rstd,  // [N] out, for backward; may be empty
                      double epsilon, Stream& stream);

/// Where x goes on beside the norm, as a residual stream does, d_x is the sum of both ways' gradients.
void rms_norm_backward(TensorView x,         // [N, C]
                       TensorView w,         // [C]
                       TensorView rstd,      // [N]
                       TensorView d_y,       // [N, C]
                       TensorView d_beside,  // [N, C]: the gradient of the other way; may be empty
                       TensorView d_x,       // [N, C] out; may alias d_y or d_beside
                       TensorView d_w,       // [C] in-out, added to
                       Stream& stream);

void layer_norm_forward(TensorView x,     // [N, C]
                        TensorView w,     // [C]
                        TensorView b,     // [C]
                        TensorView gate,  // [N, C]; may be empty: no gate
                        TensorView y,     // [N, C] out
                        TensorView mean,  // [N] out; may be empty
                        TensorView rstd,  // [N] out; may be empty
                        double epsilon, Stream& stream);

/// Writes y once more, so that the caller need not keep it.
void layer_norm_backward(TensorView x,       // [N, C]
                         TensorView w,       // [C]
                         TensorView b,       // [C]
                         TensorView gate,    // [N, C]; as in forward
                         TensorView mean,    // [N]
                         TensorView rstd,    // [N]
                         TensorView d_y,     // [N, C]
                         TensorView y,       // [N, C] out
                         TensorView d_x,     // [N, C] out; may alias d_y
                         TensorView d_gate,  // [N, C] out; empty without a gate
                         TensorView d_w,     // [C] in-out, added to
                         TensorView d_b,     // [C] in-out, added to
                         Stream& stream);

}  // namespace ttt::kernels
