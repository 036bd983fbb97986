#pragma once
// Causal softmax attention with grouped queries, tiled: scores of one tile exist at a time.
//
//   s_ij = scale q_i . k_j (j <= i), p = softmax_j(s), out_i = sum_j p_ij v_j, lse_i = logsumexp_j(s_ij)
//   backward: delta_i = d_out_i . out_i, ds = p (d_out v^T - delta), d_q = scale ds k, d_k = scale ds^T q, d_v = p^T d_out
//
// Dims: B batch, T tokens, H query heads, G key heads (G divides H; query head h uses key head h*G/H), F head dim.
// Numerics: F32 and F64; softmax statistics in fp32 or wider. On CUDA F32 and BF16, with F32 for lse. Query i of T sits
//   at position i + S - T of the S keys.
// Errors: kInternal when shapes or dtypes do not fit.
// Source: arXiv:2205.14135 and arXiv:2307.08691 (FlashAttention), arXiv:2305.13245 (GQA).

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

/// Also serves decoding: T new queries against S >= T cached keys.
void attention_forward(TensorView q,    // [B, T, H, F]
                       TensorView k,    // [B, S, G, F]
                       TensorView v,    // [B, S, G, F]
                       TensorView out,  // [B, T, H, F] out
                       TensorView lse,  // [B, H, T] out; may be empty
                       double scale, Stream& stream);

void attention_backward(TensorView q,      // [B, T, H, F]
                        TensorView k,      // [B, T, G, F]
                        TensorView v,      // [B, T, G, F]
                        TensorView out,    // [B, T, H, F]
                        TensorView lse,    // [B, H, T]
                        TensorView d_out,  // [B, T, H, F]
                        TensorView d_q,    // [B, T, H, F] out
                        TensorView d_k,    // [B, T, G, F] out
                        TensorView d_v,    // [B, T, G, F] out
                        double scale, Stream& stream);

}  // namespace ttt::kernels
