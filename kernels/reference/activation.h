#pragma once
// Definition of kernels/activation.h (equations there): the functions as written, and their derivatives.

#include <cmath>
#include <complex>
#include <numbers>
#include <span>

#include "kernels/activation.h"
#include "kernels/reference/scalar.h"

namespace ttt::kernels::reference {

template <typename T>
T activation_value(Activation kind, T x) {
  switch (kind) {
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGeluTanh:
      return 0.5 * x *
             (1.0 + std::tanh(std::sqrt(2.0 * std::numbers::inv_pi) * (x + 0.044715 * x * x * x)));
    case Activation::kGeluErf:
      break;
  }
  return 0.5 * x * (1.0 + error_function(x / std::numbers::sqrt2));
}

template <typename T>
T activation_slope(Activation kind, T x) {
  switch (kind) {
    case Activation::kSilu: {
      const T s = 1.0 / (1.0 + std::exp(-x));
      return s + x * s * (1.0 - s);
    }
    case Activation::kGeluTanh: {
      const double root = std::sqrt(2.0 * std::numbers::inv_pi);
      const T t = std::tanh(root * (x + 0.044715 * x * x * x));
      return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + 3.0 * 0.044715 * x * x);
    }
    case Activation::kGeluErf:
      break;
  }
  const T density = std::exp(-0.5 * x * x) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
  return 0.5 * (1.0 + error_function(x / std::numbers::sqrt2)) + x * density;
}

template <typename T>
void activation_forward(Activation kind, std::span<const T> x, std::span<T> y) {
  for (std::size_t i = 0; i < x.size(); ++i) y[i] = activation_value(kind, x[i]);
}

template <typename T>
void activation_backward(Activation kind, std::span<const T> x, std::span<const T> d_y,
                         std::span<T> d_x) {
  for (std::size_t i = 0; i < x.size(); ++i) d_x[i] = d_y[i] * activation_slope(kind, x[i]);
}

template <typename T>
void gated_forward(Activation kind, std::span<const T> a, std::span<const T> b, std::span<T> h) {
  for (std::size_t i = 0; i < a.size(); ++i) h[i] = activation_value(kind, a[i]) * b[i];
}

template <typename T>
void gated_backward(Activation kind, std::span<const T> a, std::span<const T> b,
                    std::span<const T> d_h, std::span<T> d_a, std::span<T> d_b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    const T through_a = d_h[i] * b[i] * activation_slope(kind, a[i]);
    const T through_b = d_h[i] * activation_value(kind, a[i]);
    d_a[i] = through_a;
    d_b[i] = through_b;
  }
}

template <typename T>
void swiglu_forward(std::span<const T> gate_up,  // [N, 2 I]
                    std::span<T> h,              // [N, I] out
                    std::size_t hidden) {
  for (std::size_t i = 0; i < h.size(); ++i) {
    const std::size_t gate = i / hidden * 2 * hidden + i % hidden;
    h[i] = activation_value(Activation::kSilu, gate_up[gate]) * gate_up[gate + hidden];
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
    d_gate_up[gate] = d_h[i] * gate_up[up] * activation_slope(Activation::kSilu, gate_up[gate]);
    d_gate_up[up] = d_h[i] * activation_value(Activation::kSilu, gate_up[gate]);
  }
}

}  // namespace ttt::kernels::reference
