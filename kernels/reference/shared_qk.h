#pragma once
// Definition of kernels/shared_qk.h (equation there), of one of the two: q or k.

#include <optional>
#include <vector>

#include "kernels/reference/causal_conv.h"
#include "kernels/reference/rope.h"

namespace ttt::kernels::reference {

template <typename T>
void rotated_conv_forward(const CausalConvSizes& size, std::int64_t head_dim,
                          const std::optional<RopeOptions>& rope,
                          std::span<const T> p,          // [B, T, C]
                          std::span<const T> w,          // [C, 1, W]
                          std::span<const T> bias,       // [C]
                          std::span<const T> history,    // [B, W-1, C]; may be empty (zeros)
                          std::span<T> y,                // [B, T, C] out
                          std::span<T> final_history) {  // [B, W-1, C] out; may be empty
  causal_conv_forward<T>(size, p, w, bias, history, {}, y, final_history);
  if (rope) rope_forward<T>(size.tokens, size.channels / head_dim, head_dim, *rope, y, y);
}

/// d_p = d_beside + what y owes to p.
template <typename T>
void rotated_conv_backward(const CausalConvSizes& size, std::int64_t head_dim,
                           const std::optional<RopeOptions>& rope,
                           std::span<const T> p,         // [B, T, C]
                           std::span<const T> w,         // [C, 1, W]
                           std::span<const T> d_y,       // [B, T, C]
                           std::span<const T> d_beside,  // [B, T, C]
                           std::span<T> d_p,             // [B, T, C] out
                           std::span<T> d_w,             // [C, 1, W] in-out
                           std::span<T> d_bias) {        // [C] in-out
  std::vector<T> turned(d_y.begin(), d_y.end());
  if (rope) {
    rope_backward<T>(size.tokens, size.channels / head_dim, head_dim, *rope, d_y, turned);
  }
  causal_conv_backward<T>(size, p, w, turned, d_beside, d_p, d_w, d_bias);
}

}  // namespace ttt::kernels::reference
