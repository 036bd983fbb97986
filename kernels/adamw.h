#pragma once
// AdamW with decoupled weight decay on flat spans, and the norm that clipping needs.
//
//   g = grad * scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   p -= lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon) + weight_decay p)
//   norm = sqrt(squares);  scale = clip_norm / norm where norm >= clip_norm > 0, else 1
//
// An update is made when norm and loss are finite and within limits; else nothing changes, t neither. All of this is decided
// where the gradients are, so that a step waits for no result.
//
// Dims: n elements, any split into spans gives the same bits.
// Numerics: F32 and F64 parameters (F32 on CUDA, and beside `rounded`); moments in the parameter's type. The sum of
//   squares is F64 over blocks of fixed size combined in order: the bits do not depend on the number of threads.
// Errors: kInternal when shapes or dtypes do not fit.
// Source: arXiv:1711.05101; epsilon outside the root as optax and PyTorch have it.

#include <limits>

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

struct AdamWStep {
  double learning_rate = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;
  double clip_norm = 0;  // 0: no clipping
};

/// An update is not made of a step beyond these.
struct UpdateLimits {
  double norm = std::numeric_limits<double>::infinity();
  double loss = std::numeric_limits<double>::infinity();
};

/// What the elements of an update share: a tensor [kDecisionSize] F64.
enum UpdateDecision : std::int8_t {
  kNumUpdates,  // t: made so far, this one included
  kIsMade,      // 1 or 0
  kClipScale,
  kUnbias1,  // 1 / (1 - b1^t)
  kUnbias2,
  kDecisionSize
};

/// The factor of the gradients.
inline double clip_scale(double norm, double clip_norm) {
  return clip_norm > 0 && norm >= clip_norm ? clip_norm / norm : 1.0;
}

void decide_update(
    TensorView squares,   // [1] F64: the sum of squares of all gradients
    TensorView losses,    // [k] F64, whose sum is the loss; may be empty
    TensorView decision,  // [kDecisionSize] F64 in-out; zeros before the first update
    const UpdateLimits& limits, const AdamWStep& step, Stream& stream);

void adamw(
    TensorView parameters,  // [n] in-out
    TensorView gradients,   // [n]
    TensorView m,           // [n] in-out
    TensorView v,           // [n] in-out
    TensorView decision,    // [kDecisionSize] F64
    TensorView rounded,     // [n] BF16 out: the new parameters for products in bf16; may be empty
    const AdamWStep& step, Stream& stream);

/// Elements of one partial sum of squares.
inline constexpr std::int64_t kSquaresBlock = 8192;

/// partial[i] is the sum of the squares of elements [i, i + 1) * kSquaresBlock; NaN or infinity if any element is.
void block_sums_of_squares(TensorView x,        // [n]
                           TensorView partial,  // [ceil(n / kSquaresBlock)] F64 out
                           Stream& stream);
/// sum = partial[0] + partial[1] + ..., in a fixed order.
void add_up(TensorView partial,  // [k] F64
            TensorView sum,      // [1] F64 out
            Stream& stream);
/// Both, of one tensor: NaN or infinity if any element is.
void sum_of_squares(TensorView x,    // [n]
                    TensorView sum,  // [1] F64 out
                    Stream& stream);

}  // namespace ttt::kernels
