#pragma once
// The learned learning rate of the inner loop and the scale of the place in the mini-batch.
//
//   rate[n, h]  = scale * sigmoid(logits[n, h] + bias[h]),  scale = base_lr * multiplier / F
//   token_scale[i] = max(0, 1/(i+1) + offset[i]);  the gradient passes where the sum is >= 0
//
// Dims: N tokens, H heads, K places of the mini-batch.
// Numerics: F32 and F64 (F32 on CUDA, beside BF16 activations too); d_bias sums over tokens in a fixed order.
// Errors: kInternal when shapes or dtypes do not fit.
// Source: arXiv:2407.04620 section 2.7; ttt-lm-pytorch (`learnable_ttt_lr`, `learnable_token_idx`).

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

void inner_learning_rate_forward(TensorView logits,  // [N, H]
                                 TensorView bias,    // [H]
                                 TensorView rate,    // [N, H] out; may alias logits
                                 double scale, Stream& stream);

void inner_learning_rate_backward(TensorView rate,      // [N, H] as written by forward
                                  TensorView d_rate,    // [N, H]
                                  TensorView d_logits,  // [N, H] out; may alias d_rate
                                  TensorView d_bias,    // [H] in-out, added to
                                  double scale, Stream& stream);

/// `offset` may be empty (plain 1/i).
void token_scale_forward(TensorView offset,  // [K]
                         TensorView scale,   // [K] out
                         Stream& stream);
void token_scale_backward(TensorView offset,    // [K]
                          TensorView d_scale,   // [K]
                          TensorView d_offset,  // [K] in-out, added to
                          Stream& stream);

}  // namespace ttt::kernels
