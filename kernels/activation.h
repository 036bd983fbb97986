#pragma once
// Pointwise functions and the gates built of them.
//
//   silu(x) = x sigmoid(x);  gelu_erf(x) = x Phi(x);
//   gelu_tanh(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
//   gated: h = act(a) * b   (the TTT output gate: gelu_tanh(gate) * y)
//   SwiGLU: h = silu(gate) * up
//
// Dims: any shape, the same for all arguments of a call. SwiGLU: N rows of I hidden units.
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

/// gate_up holds in each row the gate's values, then the others: one product makes them.
void swiglu_forward(TensorView gate_up,  // [N, 2 I]
                    TensorView h,        // [N, I] out
                    Stream& stream);
/// Writes h once more, so that the caller need not keep it.
void swiglu_backward(TensorView gate_up,    // [N, 2 I]
                     TensorView d_h,        // [N, I]
                     TensorView d_gate_up,  // [N, 2 I] out; may alias gate_up
                     TensorView h,          // [N, I] out; may alias d_h
                     Stream& stream);

/// y += x.
void add(TensorView x, TensorView y, Stream& stream);

}  // namespace ttt::kernels
