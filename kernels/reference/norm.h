#pragma once
// Definition of kernels/norm.h (equations there): one row after the other, nothing saved but what backward takes.

#include <cmath>
#include <complex>
#include <cstdint>
#include <span>

#include "kernels/reference/activation.h"

namespace ttt::kernels::reference {

template <typename T>
void rms_norm_forward(std::span<const T> x,  // [N, C]
                      std::span<const T> w,  // [C]
                      std::span<T> y,        // [N, C] out
                      std::span<T> rstd,     // [N] out
                      double epsilon) {
  const auto channels = w.size();
  for (std::size_t n = 0; n < rstd.size(); ++n) {
    T sum_of_squares{};
    for (std::size_t c = 0; c < channels; ++c) {
      sum_of_squares += x[n * channels + c] * x[n * channels + c];
    }
    rstd[n] = 1.0 / std::sqrt(sum_of_squares / static_cast<double>(channels) + epsilon);
    for (std::size_t c = 0; c < channels; ++c) {
      y[n * channels + c] = w[c] * x[n * channels + c] * rstd[n];
    }
  }
}

template <typename T>
void rms_norm_backward(std::span<const T> x,         // [N, C]
                       std::span<const T> w,         // [C]
                       std::span<const T> rstd,      // [N]
                       std::span<const T> d_y,       // [N, C]
                       std::span<const T> d_beside,  // [N, C]
                       std::span<T> d_x,             // [N, C] out
                       std::span<T> d_w) {           // [C] in-out
  const auto channels = w.size();
  for (std::size_t n = 0; n < rstd.size(); ++n) {
    T dot{};  // <w d_y, x>
    for (std::size_t c = 0; c < channels; ++c) {
      dot += w[c] * d_y[n * channels + c] * x[n * channels + c];
    }
    const T along_x = dot * rstd[n] * rstd[n] / static_cast<double>(channels);
    for (std::size_t c = 0; c < channels; ++c) {
      const auto at = n * channels + c;
      d_w[c] += d_y[at] * x[at] * rstd[n];
      d_x[at] = d_beside[at] + rstd[n] * (w[c] * d_y[at] - x[at] * along_x);
    }
  }
}

template <typename T>
void layer_norm_forward(std::span<const T> x,     // [N, C]
                        std::span<const T> w,     // [C]
                        std::span<const T> b,     // [C]
                        std::span<const T> gate,  // [N, C]; may be empty: no gate
                        std::span<T> y,           // [N, C] out
                        std::span<T> mean,        // [N] out
                        std::span<T> rstd,        // [N] out
                        double epsilon) {
  const auto channels = w.size();
  for (std::size_t n = 0; n < rstd.size(); ++n) {
    T sum{};
    for (std::size_t c = 0; c < channels; ++c) sum += x[n * channels + c];
    mean[n] = sum / static_cast<double>(channels);
    T squares{};
    for (std::size_t c = 0; c < channels; ++c) {
      const T centered = x[n * channels + c] - mean[n];
      squares += centered * centered;
    }
    rstd[n] = 1.0 / std::sqrt(squares / static_cast<double>(channels) + epsilon);
    for (std::size_t c = 0; c < channels; ++c) {
      const auto at = n * channels + c;
      y[at] = w[c] * (x[at] - mean[n]) * rstd[n] + b[c];
      if (!gate.empty()) y[at] *= gelu_tanh(gate[at]);
    }
  }
}

template <typename T>
void layer_norm_backward(std::span<const T> x,     // [N, C]
                         std::span<const T> w,     // [C]
                         std::span<const T> b,     // [C]
                         std::span<const T> gate,  // [N, C]; may be empty: no gate
                         std::span<const T> mean,  // [N]
                         std::span<const T> rstd,  // [N]
                         std::span<const T> d_y,   // [N, C]
                         std::span<T> d_x,         // [N, C] out
                         std::span<T> d_gate,      // [N, C] out; empty without a gate
                         std::span<T> d_w,         // [C] in-out
                         std::span<T> d_b) {       // [C] in-out
  const auto channels = w.size();
  const auto normalized = [&](std::size_t n, std::size_t c) {
    return (x[n * channels + c] - mean[n]) * rstd[n];
  };
  // dL/d of what the gate multiplies.
  const auto d_normed = [&](std::size_t at) {
    if (gate.empty()) return d_y[at];
    return d_y[at] * gelu_tanh(gate[at]);
  };
  for (std::size_t n = 0; n < rstd.size(); ++n) {
    T mean_g{};    // mean of g = w d_normed
    T mean_gxh{};  // mean of g * normalised x
    for (std::size_t c = 0; c < channels; ++c) {
      const T g = w[c] * d_normed(n * channels + c);
      mean_g += g / static_cast<double>(channels);
      mean_gxh += g * normalized(n, c) / static_cast<double>(channels);
    }
    for (std::size_t c = 0; c < channels; ++c) {
      const auto at = n * channels + c;
      const T d = d_normed(at);
      d_w[c] += d * normalized(n, c);
      d_b[c] += d;
      d_x[at] = rstd[n] * (w[c] * d - mean_g - normalized(n, c) * mean_gxh);
      if (gate.empty()) continue;
      d_gate[at] = d_y[at] * (w[c] * normalized(n, c) + b[c]) * gelu_tanh_slope(gate[at]);
    }
  }
}

}  // namespace ttt::kernels::reference
