#pragma once
// The definition of kernels/matmul.h: plain loops. Matrices are row-major.

#include <cstdint>

namespace ttt::kernels::reference {

/// y [N, O] += x [N, I] w^T, w [O, I]: y begins as the residual.
template <typename T>
void linear_forward(const T* x, const T* w, T* y, std::int64_t rows, std::int64_t inputs,
                    std::int64_t outputs) {
  for (std::int64_t n = 0; n < rows; ++n) {
    for (std::int64_t o = 0; o < outputs; ++o) {
      T sum{};
      for (std::int64_t i = 0; i < inputs; ++i) sum += x[n * inputs + i] * w[o * inputs + i];
      y[n * outputs + o] += sum;
    }
  }
}

/// d_x [N, I] += d_y [N, O] w.
template <typename T>
void linear_backward_input(const T* d_y, const T* w, T* d_x, std::int64_t rows, std::int64_t inputs,
                           std::int64_t outputs) {
  for (std::int64_t n = 0; n < rows; ++n) {
    for (std::int64_t o = 0; o < outputs; ++o) {
      for (std::int64_t i = 0; i < inputs; ++i) {
        d_x[n * inputs + i] += d_y[n * outputs + o] * w[o * inputs + i];
      }
    }
  }
}

/// d_w [O, I] += d_y^T x.
template <typename T>
void linear_backward_weight(const T* d_y, const T* x, T* d_w, std::int64_t rows,
                            std::int64_t inputs, std::int64_t outputs) {
  for (std::int64_t n = 0; n < rows; ++n) {
    for (std::int64_t o = 0; o < outputs; ++o) {
      for (std::int64_t i = 0; i < inputs; ++i) {
        d_w[o * inputs + i] += d_y[n * outputs + o] * x[n * inputs + i];
      }
    }
  }
}

}  // namespace ttt::kernels::reference
