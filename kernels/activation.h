#pragma once
// Pointwise functions and the gates built of them.
//
//   silu(x) = x sigmoid(x);  gelu_erf(x) = x Phi(x);
//   gelu_tanh(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
//   gated: h = act(a) * b   (SwiGLU: silu(gate) * up; the TTT output gate: gelu_tanh(gate) * y)
//
// Dims: any shape, the same for all arguments of a call.
// Numerics: F32 and F64, on CUDA F32 and BF16 with arithmetic in fp32; element-wise.
// Errors: kInternal when shapes or dtypes do not fit.
// Source: arXiv:1606.08415 (GELU), arXiv:2002.05202 (GLU variants).

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

enum class Activation { kSilu, kGeluTanh, kGeluErf };

void activation_forward(Activation kind, TensorView x, TensorView y, Stream& stream);
/// d_x may alias d_y.
void activation_backward(Activation kind, TensorView x, TensorView d_y, TensorView d_x,
                         Stream& stream);

/// h = act(a) * b; h may alias b.
void gated_forward(Activation kind, TensorView a, TensorView b, TensorView h, Stream& stream);
/// Overwrites d_a and d_b, either of which may alias d_h, a or b.
void gated_backward(Activation kind, TensorView a, TensorView b, TensorView d_h, TensorView d_a,
                    TensorView d_b, Stream& stream);

/// y += x.
void add(TensorView x, TensorView y, Stream& stream);

}  // namespace ttt::kernels
