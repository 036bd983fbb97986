#pragma once
// The inner loop of TTT-Linear and TTT-MLP: gradient descent on a self-supervised loss along the sequence, in the
// dual form, mini-batch by mini-batch.
//
// For one head and one mini-batch of r tokens, rows q, k, v [r, F]; state W of the mini-batch's start:
//   TTT-Linear                                       TTT-MLP (phi = gelu_tanh)
//   Z  = k W1 + b1                                   Z1 = k W1 + b1; X2 = phi(Z1); Z2 = X2 W2 + b2
//   G  = grad_Z 1/2 |LN(Z) - (v - k)|^2              G2 = same at Z2; G1 = (G2 W2^T) * phi'(Z1)
//   Z' = q W1 + b1 - (M * (q k^T + 1)) G             Z1' = q W1 + b1 - (M * (q k^T + 1)) G1; X2' = phi(Z1')
//                                                    Z2' = X2' W2 + b2 - (M * (X2' X2^T + 1)) G2
//   out = q + LN(Z')                                 out = q + LN(Z2')
//   W1 -= k^T diag(c_r l) G; b1 -= sum_j c_r l_j G_j   and likewise W2 with X2, G2
// with M_ij = c_i l_j for j <= i, l = token_lr, c = token_scale, and LN per head with weight gamma, bias beta.
// options.inner_norm = false: target v, G = Z - v, out = Z' (no residual, gamma and beta unused).
// options.bias = false: no b1, b2 (empty views) and no "+1".
//
// Dims: B batch, T tokens, H heads, F head dim, K mini-batch size, D hidden width of the MLP (any; published 4F).
//   T need not be a multiple of K: the last mini-batch is shorter. Every sequence starts at place 0 of a mini-batch.
// Numerics: F32 and F64; state, G, LayerNorm statistics and M in the element type. epsilon of LN is 1e-6. On CUDA
//   q, k, v, out and their gradients may be BF16 beside F32 for everything else: operands of products in bf16, sums,
//   state and statistics in fp32.
//   (batch, head) pairs are independent and each is computed by one thread: bits do not depend on the thread count.
// Errors: kInternal when shapes or dtypes do not fit.
// Source: arXiv:2407.04620 sections 2.4-2.7 and appendix A; backward: docs/numerics.md, "TTT".

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

enum class InnerModel { kLinear, kMlp };

struct TttOptions {
  InnerModel model = InnerModel::kLinear;
  std::int64_t mini_batch_size = 16;
  bool inner_norm = true;
  bool bias = true;
};

/// What the inner loop sees of a sequence.
struct TttInputs {
  TensorView q, k, v;      // [B, T, H, F], q and k after RoPE
  TensorView token_lr;     // [B, T, H]: l
  TensorView token_scale;  // [K]: c >= 0
  TensorView norm_weight;  // [H, F]: gamma; empty without inner_norm
  TensorView norm_bias;    // [H, F]: beta; empty without inner_norm
};

/// The fast weights. w2 and b2 only for the MLP; biases only with options.bias.
struct TttState {
  TensorView w1;  // [B, H, F, F] or [B, H, F, D]
  TensorView b1;  // [B, H, 1, F] or [B, H, 1, D]
  TensorView w2;  // [B, H, D, F]
  TensorView b2;  // [B, H, 1, F]
};

/// Gradients of TttInputs; d_q, d_k, d_v, d_token_lr are overwritten, the others are added to.
struct TttInputGradients {
  TensorView d_q, d_k, d_v;  // [B, T, H, F] out
  TensorView d_token_lr;     // [B, T, H] out
  TensorView d_token_scale;  // [K] in-out
  TensorView d_norm_weight;  // [H, F] in-out
  TensorView d_norm_bias;    // [H, F] in-out
};

/// What backward needs beside the inputs; filled by forward, read by the backward of the same device.
struct TttSaved {
  Tensor checkpoints;            // states of some mini-batch starts, or the final one
  Tensor step_gradients;         // fused CUDA kernels: l G (of the output layer) in bf16
  Tensor hidden_step_gradients;  // and l G1 of the MLP
};

/// `final_state` may be empty views or alias `initial`; `saved` may be null when no backward follows.
void ttt_forward(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                 TensorView out,  // [B, T, H, F] out
                 const TttState& final_state, TttSaved* saved, Stream& stream);

/// `d_final` (dL/d final_state) may be empty views: zero. `d_initial` is overwritten.
void ttt_backward(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                  const TttSaved& saved,
                  TensorView d_out,  // [B, T, H, F]
                  const TttState& d_final, const TttInputGradients& gradients,
                  const TttState& d_initial, Stream& stream);

/// Decoding in the primal form: T tokens one after the other, all of one mini-batch. `state` is that of the
/// mini-batch's start, `sums` the accumulated l_j k_j^T G_j (and its like for every member of the state), `place` in
/// [0, K - T] the first token's place. When the mini-batch is full (place + T = K) state takes the step and sums are
/// zeroed. Same arithmetic as ttt_forward to rounding; T tokens give the bits of T calls.
void ttt_step(const TttInputs& inputs,  // 1 <= T <= K - place
              const TttOptions& options, std::int64_t place,
              const TttState& state,  // in-out
              const TttState& sums,   // in-out, shaped as state
              TensorView out,         // [B, T, H, F] out
              Stream& stream);

/// The inner loss 1/2 |f(k_t; W) - v_t|^2 of every token at three weights: those of the sequence's start (row 0),
/// of its mini-batch's start (row 1), and after its own step W_t (row 2). f(k) = k + LN(...) with inner_norm.
void ttt_inner_loss(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                    TensorView losses,  // [3, B, T, H] F64 out
                    Stream& stream);

}  // namespace ttt::kernels
