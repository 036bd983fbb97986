#pragma once
// Definition of kernels/activation.h (equations there) and of the gate of kernels/norm.h: the functions as written, and
// their derivatives.

#include <cmath>
#include <complex>
#include <numbers>
#include <span>

namespace ttt::kernels::reference {

template <typename T>
T silu(T x) {
  return x / (1.0 + std::exp(-x));
}
template <typename T>
T silu_slope(T x) {
  const T s = 1.0 / (1.0 + std::exp(-x));
  return s + x * s * (1.0 - s);
}

template <typename T>
T gelu_tanh(T x) {
  return 0.5 * x *
         (1.0 + std::tanh(std::sqrt(2.0 * std::numbers::inv_pi) * (x + 0.044715 * x * x * x)));
}
template <typename T>
T gelu_tanh_slope(T x) {
  const double root = std::sqrt(2.0 * std::numbers::inv_pi);
  const T t = std::tanh(root * (x + 0.044715 * x * x * x));
  return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + 3.0 * 0.044715 * x * x);
}

template <typename T>
void swiglu_forward(std::span<const T> gate_up,  // [N, 2 I]
                    std::span<T> h,              // [N, I] out
                    std::size_t hidden) {
  for (std::size_t i = 0; i < h.size(); ++i) {
    const std::size_t gate = i / hidden * 2 * hidden + i % hidden;
    h[i] = silu(gate_up[gate]) * gate_up[gate + hidden];
  }
}

template <typename T>
void swiglu_backward(std::span<const T> gate_up,  // [N, 2 I]
                     std::span<const T> d_h,      // [N, I]
                     std::span<T> d_gate_up,      // [N, 2 I] out
                     std::span<T> h,              // [N, I] out
                     std::size_t hidden) {
  swiglu_forward(gate_up, h, hidden);
  for (std::size_t i = 0; i < d_h.size(); ++i) {
    const std::size_t gate = i / hidden * 2 * hidden + i % hidden;
    const std::size_t up = gate + hidden;
    d_gate_up[gate] = d_h[i] * gate_up[up] * silu_slope(gate_up[gate]);
    d_gate_up[up] = d_h[i] * silu(gate_up[gate]);
  }
}

}  // namespace ttt::kernels::reference
