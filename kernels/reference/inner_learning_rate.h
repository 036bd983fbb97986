#pragma once
// Definition of kernels/inner_learning_rate.h (equations there).

#include <cmath>
#include <complex>
#include <span>

#include "kernels/reference/scalar.h"

namespace ttt::kernels::reference {

template <typename T>
void inner_learning_rate_forward(std::span<const T> logits,  // [N, H]
                                 std::span<const T> bias,    // [H]
                                 std::span<T> rate,          // [N, H] out
                                 double scale) {
  for (std::size_t i = 0; i < logits.size(); ++i) {
    rate[i] = scale / (1.0 + std::exp(-(logits[i] + bias[i % bias.size()])));
  }
}

/// `scale` is not zero.
template <typename T>
void inner_learning_rate_backward(std::span<const T> rate,    // [N, H]
                                  std::span<const T> d_rate,  // [N, H]
                                  std::span<T> d_logits,      // [N, H] out
                                  std::span<T> d_bias,        // [H] in-out
                                  double scale) {
  for (std::size_t i = 0; i < rate.size(); ++i) {
    d_logits[i] = d_rate[i] * rate[i] * (1.0 - rate[i] / scale);
    d_bias[i % d_bias.size()] += d_logits[i];
  }
}

template <typename T>
void token_scale_forward(std::span<const T> offset,  // [K]; may be empty
                         std::span<T> scale) {       // [K] out
  for (std::size_t i = 0; i < scale.size(); ++i) {
    const T sum = 1.0 / static_cast<double>(i + 1) + (offset.empty() ? T{} : offset[i]);
    scale[i] = real_part(sum) < 0 ? T{} : sum;
  }
}

template <typename T>
void token_scale_backward(std::span<const T> offset,   // [K]
                          std::span<const T> d_scale,  // [K]
                          std::span<T> d_offset) {     // [K] in-out
  for (std::size_t i = 0; i < offset.size(); ++i) {
    if (1.0 / static_cast<double>(i + 1) + real_part(offset[i]) >= 0) d_offset[i] += d_scale[i];
  }
}

}  // namespace ttt::kernels::reference
