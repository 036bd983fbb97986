#pragma once
// Definition of kernels/norm.h (equations there): one row after the other, nothing saved but what backward takes.

#include <cmath>
#include <complex>
#include <cstdint>
#include <span>

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
void layer_norm_forward(std::span<const T> x,  // [N, C]
                        std::span<const T> w,  // [C]
                        std::span<const T> b,  // [C]
                        std::span<T> y,        // [N, C] out
                        std::span<T> mean,     // [N] out
                        std::span<T> rstd,     // [N] out
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
      y[n * channels + c] = w[c] * (x[n * channels + c] - mean[n]) * rstd[n] + b[c];
    }
  }
}

template <typename T>
void layer_norm_backward(std::span<const T> x,     // [N, C]
                         std::span<const T> w,     // [C]
                         std::span<const T> mean,  // [N]
                         std::span<const T> rstd,  // [N]
                         std::span<const T> d_y,   // [N, C]
                         std::span<T> d_x,         // [N, C] out
                         std::span<T> d_w,         // [C] in-out
                         std::span<T> d_b) {       // [C] in-out
  const auto channels = w.size();
  for (std::size_t n = 0; n < rstd.size(); ++n) {
    T mean_g{};    // mean of g = w d_y
    T mean_gxh{};  // mean of g * normalised x
    for (std::size_t c = 0; c < channels; ++c) {
      const auto at = n * channels + c;
      mean_g += w[c] * d_y[at] / static_cast<double>(channels);
      mean_gxh += w[c] * d_y[at] * (x[at] - mean[n]) * rstd[n] / static_cast<double>(channels);
    }
    for (std::size_t c = 0; c < channels; ++c) {
      const auto at = n * channels + c;
      const T normalized = (x[at] - mean[n]) * rstd[n];
      d_w[c] += d_y[at] * normalized;
      d_b[c] += d_y[at];
      d_x[at] = rstd[n] * (w[c] * d_y[at] - mean_g - normalized * mean_gxh);
    }
  }
}

}  // namespace ttt::kernels::reference
