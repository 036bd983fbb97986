#pragma once
// Where the first element is that is not finite.
//
//   partial[i] = min of begin + j over the elements j of block i with x[j] NaN or infinite, else infinity
//   smallest = min over i of partial[i]
//
// Dims: n elements in blocks of kNonFiniteBlock.
// Numerics: x is F32 or F64 (F32 on CUDA); places are F64, exact below 2^53.
// Errors: kInternal when shapes or dtypes do not fit.
// Source: none.

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

inline constexpr std::int64_t kNonFiniteBlock = 8192;

void find_non_finite(TensorView x,        // [n]
                     std::int64_t begin,  // place of x[0]
                     TensorView partial,  // [ceil(n / kNonFiniteBlock)] F64 out
                     Stream& stream);
void smallest(TensorView partial,  // [k] F64
              TensorView result,   // [1] F64 out; infinity when k is 0
              Stream& stream);

}  // namespace ttt::kernels
