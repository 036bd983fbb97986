#pragma once
// Products of fp32 matrices in shared memory by a block of 256 threads: what the attention kernels without tensor
// cores are made of. Any sizes; each sum runs in the order of k.

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda::tiles {

constexpr int kSide = 16;  // threads along a side of a product
constexpr int kThreads = kSide * kSide;
constexpr int kWarps = kThreads / 32;
/// What tiles may take of a block, of `available` bytes: more than compute capability 8.0 has, less what the runtime may keep,
/// would not make them faster.
constexpr std::int64_t for_tiles(std::int64_t available) {
  return std::min(available, std::int64_t{160} << 10);
}

/// Elements between rows of a tile: odd, so that a row's and a column's elements lie in different banks.
__host__ __device__ constexpr int stride_of(std::int64_t columns) {
  return static_cast<int>(columns) | 1;
}

/// Element (i, j) is at data[i * row + j * column].
struct Matrix {
  const float* data;
  int row, column;
};
__device__ __forceinline__ Matrix plain(const float* data, int stride) { return {data, stride, 1}; }
__device__ __forceinline__ Matrix transposed(const float* data, int stride) {
  return {data, 1, stride};
}

struct Product {
  Matrix a, b;
  int depth;
};

/// sum += the thread's elements of a b.
template <int kRows, int kColumns>
__device__ __forceinline__ void accumulate(float (&sum)[kRows][kColumns], const Product& product,
                                           const int (&i)[kRows], const int (&j)[kColumns]) {
  const float* a[kRows];
  const float* b[kColumns];
#pragma unroll
  for (int r = 0; r < kRows; ++r) a[r] = product.a.data + i[r] * product.a.row;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) b[c] = product.b.data + j[c] * product.b.column;
#pragma unroll 4
  for (int k = 0; k < product.depth; ++k) {
    float x[kRows], y[kColumns];
#pragma unroll
    for (int r = 0; r < kRows; ++r) x[r] = a[r][k * product.a.column];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) y[c] = b[c][k * product.b.row];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sum[r][c] += x[r] * y[c];
    }
  }
}

/// f(i, j, element (i, j) of a b + c d) for i < rows, j < columns. The same thread has the same (i, j) in every
/// product of these sizes and template arguments. No barriers: the caller's.
template <int kRows, int kColumns, typename F>
__device__ __forceinline__ void multiply_two(int rows, int columns, const Product& first,
                                             const Product& second, F&& f) {
  const int x = static_cast<int>(threadIdx.x) % kSide;
  const int y = static_cast<int>(threadIdx.x) / kSide;
  for (int row = 0; row < rows; row += kSide * kRows) {
    for (int column = 0; column < columns; column += kSide * kColumns) {
      // Beyond the edge threads repeat the last row or column, and drop what they get.
      int i[kRows], j[kColumns];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        i[r] = row + y + kSide * r;
        if (i[r] >= rows) i[r] = rows - 1;
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        j[c] = column + x + kSide * c;
        if (j[c] >= columns) j[c] = columns - 1;
      }
      float sum[kRows][kColumns] = {};
      accumulate(sum, first, i, j);
      accumulate(sum, second, i, j);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          if (row + y + kSide * r < rows && column + x + kSide * c < columns) {
            f(i[r], j[c], sum[r][c]);
          }
        }
      }
    }
  }
}

/// f(i, j, element (i, j) of a b).
template <int kRows, int kColumns, typename F>
__device__ __forceinline__ void multiply(int rows, int columns, const Product& product, F&& f) {
  const Product none{product.a, product.b, 0};
  multiply_two<kRows, kColumns>(rows, columns, product, none, f);
}

/// to [rows, columns] = f(row, element of from), a warp a row.
template <typename T, typename F>
__device__ __forceinline__ void load_rows(const T* from, std::int64_t from_stride, int rows,
                                          int columns, float* to, F&& f) {
  const int stride = stride_of(columns);
  for (int i = static_cast<int>(threadIdx.x) / 32; i < rows; i += kWarps) {
    for (int j = static_cast<int>(threadIdx.x) % 32; j < columns; j += 32) {
      to[i * stride + j] = f(i, load_float(from[i * from_stride + j]));
    }
  }
}

/// to [rows, columns] = f(i, j), a warp a row.
template <typename T, typename F>
__device__ __forceinline__ void store_rows(T* to, std::int64_t to_stride, int rows, int columns,
                                           F&& f) {
  for (int i = static_cast<int>(threadIdx.x) / 32; i < rows; i += kWarps) {
    for (int j = static_cast<int>(threadIdx.x) % 32; j < columns; j += 32) {
      store_float(&to[i * to_stride + j], f(i, j));
    }
  }
}

__device__ __forceinline__ void fill(float* to, int count, float value) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) to[i] = value;
}

__device__ __forceinline__ float warp_sum(float x) {
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffU, x, mask);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
  for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, mask));
  return x;
}

/// Hands out dynamic shared memory.
struct Shared {
  float* next = reinterpret_cast<float*>(dynamic_shared_memory());

  __device__ __forceinline__ float* take(int count) {
    float* const taken = next;
    next += count;
    return taken;
  }
};

}  // namespace ttt::kernels::cuda::tiles
