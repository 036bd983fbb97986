#pragma once
// Rows of RMSNorm on the CPU (kernels/norm.h, kernels/norm_conv.h).

#include <cmath>
#include <cstdint>

namespace ttt::kernels {

template <typename T>
double rms_rstd(const T* x, std::int64_t channels, double epsilon) {
  double squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t c = 0; c < channels; ++c) {
    squares += static_cast<double>(x[c]) * static_cast<double>(x[c]);
  }
  return 1.0 / std::sqrt(squares / static_cast<double>(channels) + epsilon);
}

/// y = w * x * rstd; returns rstd.
template <typename T>
T rms_norm_row(const T* x, const T* w, T* y, std::int64_t channels, double epsilon) {
  const T r = static_cast<T>(rms_rstd(x, channels, epsilon));
#pragma omp simd
  for (std::int64_t c = 0; c < channels; ++c) y[c] = w[c] * (x[c] * r);
  return r;
}

/// d_x may be d_y or d_beside: every channel is read before it is written, which `omp simd` vouches for.
template <typename T, bool kHasBeside>
void rms_backward_row(const T* x, const T* w, T rstd, const T* d_y, const T* d_beside, T* d_x,
                      double* sum_w, std::int64_t channels) {
  double dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t c = 0; c < channels; ++c) dot += static_cast<double>(w[c] * d_y[c] * x[c]);
  const double r = static_cast<double>(rstd);
  const T along_x = static_cast<T>(dot * r * r / static_cast<double>(channels));
#pragma omp simd
  for (std::int64_t c = 0; c < channels; ++c) {
    const T d = d_y[c];
    sum_w[c] += static_cast<double>(d * x[c] * rstd);
    const T through_norm = rstd * (w[c] * d - x[c] * along_x);
    d_x[c] = kHasBeside ? through_norm + d_beside[c] : through_norm;
  }
}

}  // namespace ttt::kernels
