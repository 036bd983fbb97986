#pragma once
// A small dense matrix, so that the reference kernels read like the equations they define.

#include <cstdint>
#include <vector>

namespace ttt::kernels::reference {

template <typename T>
struct Matrix {
  Matrix() = default;
  Matrix(std::int64_t num_rows, std::int64_t num_cols)
      : rows(num_rows), cols(num_cols), values(num_rows * num_cols) {}

  T& operator()(std::int64_t i, std::int64_t j) { return values[i * cols + j]; }
  const T& operator()(std::int64_t i, std::int64_t j) const { return values[i * cols + j]; }

  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<T> values;  // row-major
};

template <typename T>
Matrix<T> transpose(const Matrix<T>& a) {
  Matrix<T> result(a.cols, a.rows);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < a.cols; ++j) result(j, i) = a(i, j);
  }
  return result;
}

template <typename T>
Matrix<T> operator*(const Matrix<T>& a, const Matrix<T>& b) {
  Matrix<T> result(a.rows, b.cols);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t k = 0; k < a.cols; ++k) {
      for (std::int64_t j = 0; j < b.cols; ++j) result(i, j) += a(i, k) * b(k, j);
    }
  }
  return result;
}

/// f(a_ij, b_ij) for every element.
template <typename T, typename F>
Matrix<T> zip(const Matrix<T>& a, const Matrix<T>& b, F f) {
  Matrix<T> result(a.rows, a.cols);
  for (std::int64_t i = 0; i < a.rows * a.cols; ++i) result.values[i] = f(a.values[i], b.values[i]);
  return result;
}

/// f(a_ij) for every element.
template <typename T, typename F>
Matrix<T> map(const Matrix<T>& a, F f) {
  return zip(a, a, [f](const T& x, const T&) { return f(x); });
}

template <typename T>
Matrix<T> operator+(const Matrix<T>& a, const Matrix<T>& b) {
  return zip(a, b, [](const T& x, const T& y) { return x + y; });
}

template <typename T>
Matrix<T> operator-(const Matrix<T>& a, const Matrix<T>& b) {
  return zip(a, b, [](const T& x, const T& y) { return x - y; });
}

/// The element-wise product.
template <typename T>
Matrix<T> hadamard(const Matrix<T>& a, const Matrix<T>& b) {
  return zip(a, b, [](const T& x, const T& y) { return x * y; });
}

/// a with `row` [1, cols] added to every row.
template <typename T>
Matrix<T> add_to_rows(Matrix<T> a, const Matrix<T>& row) {
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < a.cols; ++j) a(i, j) += row(0, j);
  }
  return a;
}

/// diag(scale) a.
template <typename T>
Matrix<T> scale_rows(const std::vector<T>& scale, Matrix<T> a) {
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < a.cols; ++j) a(i, j) *= scale[i];
  }
  return a;
}

/// The sum over rows, [1, cols].
template <typename T>
Matrix<T> sum_of_rows(const Matrix<T>& a) {
  Matrix<T> result(1, a.cols);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < a.cols; ++j) result(0, j) += a(i, j);
  }
  return result;
}

}  // namespace ttt::kernels::reference
