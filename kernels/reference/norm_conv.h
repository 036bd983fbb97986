#pragma once
// Definition of kernels/norm_conv.h (equation there).

#include <vector>

#include "kernels/reference/causal_conv.h"
#include "kernels/reference/norm.h"

namespace ttt::kernels::reference {

template <typename T>
void norm_conv_forward(const CausalConvSizes& size, double epsilon,
                       std::span<const T> x,          // [B, T, C]
                       std::span<const T> norm_w,     // [C]
                       std::span<const T> w,          // [C, 1, W]
                       std::span<const T> bias,       // [C]
                       std::span<const T> history,    // [B, W-1, C]; may be empty (zeros)
                       std::span<T> y,                // [B, T, C] out
                       std::span<T> final_history) {  // [B, W-1, C] out; may be empty
  const auto normed = [&](std::span<const T> rows) {
    std::vector<T> result(rows.size()), rstd(rows.size() / norm_w.size());
    rms_norm_forward<T>(rows, norm_w, result, rstd, epsilon);
    return result;
  };
  causal_conv_forward<T>(size, normed(x), w, bias, normed(history), x, y, {});
  // What goes on is rows of x, which a convolution of x carries.
  if (!final_history.empty()) {
    std::vector<T> unused(x.size());
    causal_conv_forward<T>(size, x, w, bias, history, {}, unused, final_history);
  }
}

template <typename T>
void norm_conv_backward(const CausalConvSizes& size, double epsilon,
                        std::span<const T> x,       // [B, T, C]
                        std::span<const T> norm_w,  // [C]
                        std::span<const T> w,       // [C, 1, W]
                        std::span<const T> d_y,     // [B, T, C]
                        std::span<T> d_x,           // [B, T, C] out
                        std::span<T> d_norm_w,      // [C] in-out
                        std::span<T> d_w,           // [C, 1, W] in-out
                        std::span<T> d_bias) {      // [C] in-out
  std::vector<T> normed(x.size()), d_normed(x.size()), rstd(x.size() / norm_w.size());
  rms_norm_forward<T>(x, norm_w, normed, rstd, epsilon);
  const std::vector<T> zeros(x.size());
  causal_conv_backward<T>(size, normed, w, d_y, zeros, d_normed, d_w, d_bias);
  rms_norm_backward<T>(x, norm_w, rstd, d_normed, d_y, d_x, d_norm_w);
}

}  // namespace ttt::kernels::reference
