#pragma once
// Queries and keys of one shared projection: each a depthwise causal convolution of it (kernels/causal_conv.h), then RoPE
// (kernels/rope.h), if there is one, all in one pass.
//
//   q = rope(conv(p; w_q, bias_q)),  k = rope(conv(p; w_k, bias_k))
//
// Dims: B batch, T tokens, H heads, F head dim (even with RoPE), W window. T may be smaller than W - 1.
// Numerics: F32 and F64, in the order of additions of the two ops; gradients of w and bias are summed in an order that
//   does not depend on the number of threads. On CUDA F32 and BF16, with F32 for w, bias and their gradients.
// Errors: kInternal when shapes or dtypes do not fit, or F is odd with RoPE.
// Source: arXiv:2407.04620, figure 13 (Mamba backbone); ttt-lm-pytorch.

#include <optional>

#include "kernels/rope.h"

namespace ttt::kernels {

void shared_qk_forward(
    TensorView p,              // [B, T, H, F]
    TensorView w_q,            // [H F, 1, W]
    TensorView bias_q,         // [H F]
    TensorView w_k,            // [H F, 1, W]
    TensorView bias_k,         // [H F]
    TensorView history,        // [B, W-1, H F]: the last rows of p before it; may be empty (zeros)
    TensorView q,              // [B, T, H, F] out; must not alias p
    TensorView k,              // [B, T, H, F] out; must not alias p
    TensorView final_history,  // [B, W-1, H F] out; may be empty; may alias history
    const std::optional<RopeOptions>& rope, Stream& stream);

/// Sequences that start from zeros (no history).
void shared_qk_backward(TensorView p,         // [B, T, H, F]
                        TensorView w_q,       // [H F, 1, W]
                        TensorView w_k,       // [H F, 1, W]
                        TensorView d_q,       // [B, T, H, F]; may be overwritten
                        TensorView d_k,       // [B, T, H, F]; may be overwritten
                        TensorView d_p,       // [B, T, H, F] out; must not alias d_q or d_k
                        TensorView d_w_q,     // [H F, 1, W] in-out, added to
                        TensorView d_bias_q,  // [H F] in-out, added to
                        TensorView d_w_k,     // [H F, 1, W] in-out, added to
                        TensorView d_bias_k,  // [H F] in-out, added to
                        const std::optional<RopeOptions>& rope, Stream& stream);

}  // namespace ttt::kernels
