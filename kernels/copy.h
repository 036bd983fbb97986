#pragma once
// Copies and constants in the order of a stream. core/base/tensor.h has `copy` and `fill` for memory that no queued
// kernel uses; inside a step these are the ones to call.
//
//   to[i] = from[i], rounded to the type of `to`;  y[i] = value
//
// Dims: any shape, the same for both arguments.
// Numerics: F64, F32 and BF16 convert into each other, rounding to nearest even; any type copies to itself.
// Errors: kInternal when shapes differ or a type does not convert.
// Source: none.

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

void copy(TensorView from, TensorView to, Stream& stream);
void fill(TensorView y, double value, Stream& stream);
/// `columns` columns of a matrix into another one: to[r, to_begin + i] = from[r, from_begin + i].
void copy_columns(TensorView from,  // [R, M]
                  std::int64_t from_begin,
                  TensorView to,  // [R, N] in-out, of the same type; must not alias from
                  std::int64_t to_begin, std::int64_t columns, Stream& stream);

/// A tensor of zeros.
Tensor zeros(const Shape& shape, DType dtype, Stream& stream);
/// A copy in another floating-point type.
Tensor to_dtype(TensorView x, DType dtype, Stream& stream);

}  // namespace ttt::kernels
