#pragma once
// AdamW with decoupled weight decay on flat spans, and the norm that clipping needs.
//
//   g = grad * grad_scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   p -= lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon) + weight_decay p)
//
// Dims: n elements, any split into spans gives the same bits.
// Numerics: F32 and F64 parameters (F32 on CUDA); moments in the parameter's type. The sum of squares is
//   F64 over blocks of fixed size combined in order: the bits do not depend on the number of threads.
// Errors: kInternal when shapes or dtypes do not fit.
// Source: arXiv:1711.05101; epsilon outside the root as optax and PyTorch have it.

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

struct AdamWStep {
  double learning_rate = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;
  double grad_scale = 1;  // clipping
  std::int64_t step = 1;  // t, counted from 1
};

void adamw(TensorView parameters,  // [n] in-out
           TensorView gradients,   // [n]
           TensorView m,           // [n] in-out
           TensorView v,           // [n] in-out
           const AdamWStep& step, Stream& stream);

/// Elements of one partial sum of squares.
inline constexpr std::int64_t kSquaresBlock = 8192;

/// partial[i] is the sum of the squares of elements [i, i + 1) * kSquaresBlock; NaN or infinity if any element is.
void block_sums_of_squares(TensorView x,        // [n]
                           TensorView partial,  // [ceil(n / kSquaresBlock)] F64 out
                           Stream& stream);
/// Sum of squares of all elements: its blocks' sums, in order.
double sum_of_squares(TensorView x, Stream& stream);

}  // namespace ttt::kernels
