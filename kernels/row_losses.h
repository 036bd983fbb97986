#pragma once
// The loss of every sequence: what a step reports, summed where the losses of the tokens are.
//
//   losses[b] = sum_t token_weight[b, t] nll[b, t]
//
// Dims: B sequences of T tokens.
// Numerics: F64. The CPU adds in the order of t; CUDA in an order that T alone decides.
// Errors: kInternal when shapes or dtypes do not fit.
// Source: none.

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

void row_losses(TensorView token_weight,  // [B, T] F64
                TensorView nll,           // [B, T] F64
                TensorView losses,        // [B] F64 out
                Stream& stream);

}  // namespace ttt::kernels
