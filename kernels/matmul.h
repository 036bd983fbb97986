#pragma once
// The three products of a linear layer y = x W^T.
//
//   forward:         y   = x W^T + residual     backward: d_x = d_y W,   d_w += d_y^T x
//
// Forward also takes S layers of one x, whose weights lie one behind the other: y_s = x W_s^T + residual_s.
//
// Dims: N rows (tokens), I inputs, O outputs, S layers; weights are stored [O, I].
// Numerics: F64 and F32 through BLAS; with Precision::kBF16, F32 or BF16 operands are rounded to bf16 and products
//   accumulate in fp32. Work is cut into blocks whose sizes depend on the shapes alone, so the bits do not depend on
//   the number of threads. On CUDA operands and results may be F32 or BF16; kNative multiplies
//   in fp32 and gives F32.
// Errors: kInternal when shapes or dtypes do not fit.
// Source: "Learning representations by back-propagating errors"; any text on linear layers.

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

enum class Precision { kNative, kBF16 };
enum class Accumulate { kNo, kYes };

void linear_forward(TensorView x,         // [N, I]
                    TensorView w,         // [O, I] or [S, O, I]
                    TensorView residual,  // [N, O] or [S, N, O], of y's type; may be empty: zeros
                    TensorView y,         // [N, O] or [S, N, O] out; must not alias residual
                    Precision precision, Stream& stream);

void linear_backward_input(TensorView d_y,  // [N, O]
                           TensorView w,    // [O, I]
                           TensorView d_x,  // [N, I] out; kYes adds
                           Accumulate accumulate, Precision precision, Stream& stream);

void linear_backward_weight(TensorView d_y,  // [N, O]
                            TensorView x,    // [N, I]
                            TensorView d_w,  // [O, I] in-out, added to
                            Precision precision, Stream& stream);

}  // namespace ttt::kernels
