#pragma once
// Pointwise steps between products.
//
//   SwiGLU: h = silu(gate) * up,  silu(x) = x sigmoid(x)
//   add:    y += x
//
// Dims: N rows of I hidden units; `add` takes any shape, the same for both.
// Numerics: F32 and F64, on CUDA F32 and BF16 with arithmetic in fp32; element-wise.
// Errors: kInternal when shapes or dtypes do not fit.
// Source: arXiv:2002.05202 (GLU variants).

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

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
