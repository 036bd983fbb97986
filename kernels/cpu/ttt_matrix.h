#pragma once
// Small row-major matrices in padded scratch, and the products of the TTT inner loop.
//
// A Rows' stride is a multiple of the vector width and its memory is aligned; columns beyond the logical width hold
// zeros, which all operations here preserve. Products are register blocked: kTileRows x kTileVectors accumulators.

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/simd.h"

namespace ttt::kernels::ttt_cpu {

using simd::kLanes;
using simd::Vec;

template <typename T>
struct Rows {
  T* data = nullptr;
  std::int64_t stride = 0;

  [[nodiscard]] T* row(std::int64_t i) const { return data + i * stride; }
  /// From row `first` on.
  [[nodiscard]] Rows from(std::int64_t first) const { return {row(first), stride}; }
};

/// How the left factor of a product is stored.
enum class Left { kPlain, kTransposed };

/// Accumulators start from `init` row by row; stride 0 repeats one row (a bias), null starts from zero.
template <typename T>
struct Start {
  const T* data = nullptr;
  std::int64_t stride = 0;

  Start() = default;
  Start(const T* first, std::int64_t row_stride) : data(first), stride(row_stride) {}
  Start(const Rows<T>& rows) : data(rows.data), stride(rows.stride) {}  // NOLINT: a Rows is one
};

template <typename T, Left kLeft, int kTileRows, int kTileVectors>
[[gnu::noinline]] void multiply_tile(const T* a, std::int64_t a_stride, const T* b,
                                     std::int64_t b_stride, std::int64_t depth, Start<T> init, T* c,
                                     std::int64_t c_stride) {
  Vec<T> sums[kTileRows][kTileVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) {
      sums[i][v] =
          init.data == nullptr ? Vec<T>{} : simd::load(init.data + i * init.stride + v * kLanes<T>);
    }
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    Vec<T> right[kTileVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) right[v] = simd::load(b + v * kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const Vec<T> left =
          simd::splat(kLeft == Left::kPlain ? a[i * a_stride + k] : a[k * a_stride + i]);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) sums[i][v] = simd::fma(left, right[v], sums[i][v]);
    }
    b += b_stride;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) {
      simd::store(c + i * c_stride + v * kLanes<T>, sums[i][v]);
    }
  }
}

inline constexpr int kTileRows = 8;
inline constexpr int kTileVectors = 2;

/// A strip of up to kTileRows rows, the count turned into a template argument.
template <typename T, Left kLeft, int kVectors, int kRows = kTileRows>
void multiply_strip(std::int64_t rows, const T* a, std::int64_t a_stride, const T* b,
                    std::int64_t b_stride, std::int64_t depth, Start<T> init, T* c,
                    std::int64_t c_stride) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      multiply_strip<T, kLeft, kVectors, kRows - 1>(rows, a, a_stride, b, b_stride, depth, init, c,
                                                    c_stride);
      return;
    }
  }
  multiply_tile<T, kLeft, kRows, kVectors>(a, a_stride, b, b_stride, depth, init, c, c_stride);
}

/// C [rows, columns] = init + A B with A [rows, depth] (stored [depth, rows] if kTransposed), B [depth, columns].
/// With `causal` A is lower triangular: row i meets only rows <= i of B (kPlain).
template <Left kLeft, typename T>
void multiply(std::int64_t rows, std::int64_t columns, std::int64_t depth, Rows<T> a, Rows<T> b,
              Start<T> init, Rows<T> c, bool causal = false) {
  for (std::int64_t i = 0; i < rows; i += kTileRows) {
    const std::int64_t count = std::min<std::int64_t>(kTileRows, rows - i);
    const std::int64_t met = causal ? std::min(depth, i + count) : depth;
    const T* left = kLeft == Left::kPlain ? a.row(i) : a.data + i;
    for (std::int64_t j = 0; j < columns; j += kTileVectors * kLanes<T>) {
      const Start<T> start =
          init.data == nullptr ? init : Start<T>(init.data + i * init.stride + j, init.stride);
      if (columns - j > kLanes<T>) {
        multiply_strip<T, kLeft, 2>(count, left, a.stride, b.data + j, b.stride, met, start,
                                    c.row(i) + j, c.stride);
      } else {
        multiply_strip<T, kLeft, 1>(count, left, a.stride, b.data + j, b.stride, met, start,
                                    c.row(i) + j, c.stride);
      }
    }
  }
}

/// One block of `transpose`; kWhole knows at compile time that all its rows and columns exist.
template <bool kWhole, typename T>
[[gnu::always_inline]] inline void transpose_block(std::int64_t rows, std::int64_t columns,
                                                   const T* from, std::int64_t from_stride, T* to,
                                                   std::int64_t to_stride) {
  constexpr int kBlock = kLanes<T>;
  Vec<T> block[kBlock];
#pragma GCC unroll 16
  for (int k = 0; k < kBlock; ++k) {
    block[k] = kWhole || k < rows ? simd::load(from + k * from_stride) : Vec<T>{};
  }
  simd::transpose_block<T>(block);
#pragma GCC unroll 16
  for (int k = 0; k < kBlock; ++k) {
    if (kWhole || k < columns) simd::store(to + k * to_stride, block[k]);
  }
}

/// to [columns, rows] = from [rows, columns], zeros up to the padded number of rows.
template <typename T>
void transpose(std::int64_t rows, std::int64_t columns, Rows<T> from, Rows<T> to) {
  constexpr std::int64_t kBlock = kLanes<T>;
  for (std::int64_t i = 0; i < rows; i += kBlock) {
    for (std::int64_t j = 0; j < columns; j += kBlock) {
      if (i + kBlock <= rows && j + kBlock <= columns) {
        transpose_block<true>(kBlock, kBlock, from.row(i) + j, from.stride, to.row(j) + i,
                              to.stride);
      } else {
        transpose_block<false>(rows - i, columns - j, from.row(i) + j, from.stride, to.row(j) + i,
                               to.stride);
      }
    }
  }
}

/// sums [columns] += the column sums of x.
template <typename T>
void add_column_sums(std::int64_t rows, std::int64_t columns, Rows<T> x, T* sums) {
  for (std::int64_t j = 0; j < columns; j += kLanes<T>) {
    Vec<T> total = simd::load(sums + j);
    for (std::int64_t i = 0; i < rows; ++i) total += simd::load(x.row(i) + j);
    simd::store(sums + j, total);
  }
}

/// f(column offset, row index) over all vectors of a block; the body of every element-wise loop here.
template <typename T, typename F>
void for_each_vector(std::int64_t rows, std::int64_t columns, F&& f) {
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; j += kLanes<T>) f(i, j);
  }
}

}  // namespace ttt::kernels::ttt_cpu
