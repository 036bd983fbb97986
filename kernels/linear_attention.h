#pragma once
// Causal linear attention, optionally normalised: the first rungs of the TTT paper's ablation ladder.
//
//   out_t = sum_{s<=t} (phi(q_t) . phi(k_s)) v_s  [ / (sum_{s<=t} phi(q_t) . phi(k_s)) ]
//   phi = identity, or elu(x) + 1
//
// Dims: B batch, T tokens, H heads, F head dim. Computed in chunks with a carried state [F, F] (and [F]).
// Numerics: F32 and F64; on CUDA F32 and BF16, with F32 for the state. The chunk length depends on shapes alone.
// Errors: kInternal when shapes or dtypes do not fit.
// Source: arXiv:2006.16236 (feature map and normaliser); arXiv:2407.04620 table 1 (without both).

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

enum class FeatureMap { kIdentity, kEluPlusOne };

struct LinearAttentionOptions {
  FeatureMap feature_map = FeatureMap::kIdentity;
  bool normalize = false;
};

/// State carried over chunks and decode steps; empty views mean zeros (in) or not wanted (out).
struct LinearAttentionState {
  TensorView kv;     // [B, H, F, F]: sum_s phi(k_s)^T v_s
  TensorView k_sum;  // [B, H, F]: sum_s phi(k_s)
};

void linear_attention_forward(TensorView q,    // [B, T, H, F]
                              TensorView k,    // [B, T, H, F]
                              TensorView v,    // [B, T, H, F]
                              TensorView out,  // [B, T, H, F] out
                              const LinearAttentionState& initial,
                              const LinearAttentionState& final_state,  // may alias initial
                              const LinearAttentionOptions& options, Stream& stream);

/// `d_final` is dL/d final_state and `d_initial` dL/d initial.
void linear_attention_backward(TensorView q, TensorView k, TensorView v,  // [B, T, H, F]
                               const LinearAttentionState& initial,
                               TensorView d_out,  // [B, T, H, F]
                               const LinearAttentionState& d_final, TensorView d_q, TensorView d_k,
                               TensorView d_v,                         // out
                               const LinearAttentionState& d_initial,  // out
                               const LinearAttentionOptions& options, Stream& stream);

}  // namespace ttt::kernels
