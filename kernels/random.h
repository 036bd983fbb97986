#pragma once
// Random numbers for whole tensors.
//
//   values[i] = deviation * rng.normal(i), or rng.truncated_normal(i)
//
// Dims: any shape; i counts its elements in memory order.
// Numerics: F32 and F64 (F32 on CUDA); drawn in double and rounded once. Every element is a function of its index
//   alone, so the bits do not depend on the number of threads; CUDA's differ where its log or cos does, in the last bit.
// Errors: kInternal when the dtype does not fit.
// Source: core/base/rng.h, the definition of each number.

#include "core/base/rng.h"
#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

void random_normal(const CounterRng& rng, double deviation,
                   TensorView values,  // [...] out
                   Stream& stream);

void random_truncated_normal(const CounterRng& rng, double deviation,
                             TensorView values,  // [...] out
                             Stream& stream);

}  // namespace ttt::kernels
