#pragma once
// What the attention kernels are called with, and how the row terms of the backward pass are made.

#include <cstdint>

#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda {

/// As in kernels/attention.h; query i sits at position i + keys - queries.
struct AttentionSizes {
  std::int64_t batch, queries, keys, heads, key_heads, dim;

  // Elements between tokens of q, out and their gradients, and of k and v.
  __host__ __device__ std::int64_t query_stride() const { return heads * dim; }
  __host__ __device__ std::int64_t key_stride() const { return key_heads * dim; }
  __host__ __device__ std::int64_t group() const { return heads / key_heads; }
  // Of a head's first row.
  __host__ __device__ std::int64_t query_offset(std::int64_t b, std::int64_t h) const {
    return b * queries * query_stride() + h * dim;
  }
  __host__ __device__ std::int64_t key_offset(std::int64_t b, std::int64_t g) const {
    return b * keys * key_stride() + g * dim;
  }
};

template <typename T>
struct AttentionForward {
  AttentionSizes n;
  const T* q;
  const T* k;
  const T* v;
  T* out;
  float* lse;  // null: not wanted
  float scale;
};

template <typename T>
struct AttentionBackward {
  AttentionSizes n;
  const T* q;
  const T* k;
  const T* v;
  const T* d_out;
  const float* terms;  // [B, H, T, 2]: lse in the kernel's units, delta
  T* d_q;
  T* d_k;
  T* d_v;
  float scale;
};

/// Where a block works: blocks walk the heads of all sequences first, so that tiles of equal cost start together.
struct AttentionPlace {
  std::int64_t batch, head, tile;
};
__device__ __forceinline__ AttentionPlace attention_place(std::int64_t batch, std::int64_t heads) {
  const std::int64_t i = blockIdx.x;
  const std::int64_t head = i % (batch * heads);
  return {head / heads, head % heads, i / (batch * heads)};
}

/// The smaller of what is left of a tile and its size.
__device__ __forceinline__ int rows_of_tile(std::int64_t left, int size) {
  return left < size ? static_cast<int>(left) : size;
}

constexpr int kRowTermsWarps = 8;

/// terms of one row a warp: lse times `lse_factor`, and delta = d_out . out.
template <typename T>
__global__ void __launch_bounds__(32 * kRowTermsWarps)
    attention_row_terms_kernel(AttentionSizes n, const T* out, const T* d_out, const float* lse,
                               float lse_factor, float* terms) {
  const std::int64_t row =
      static_cast<std::int64_t>(blockIdx.x) * kRowTermsWarps + threadIdx.x / 32;
  if (row >= n.batch * n.queries * n.heads) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  float delta = 0;
  for (std::int64_t f = lane; f < n.dim; f += 32) {
    delta += load_float(out[row * n.dim + f]) * load_float(d_out[row * n.dim + f]);
  }
  for (int mask = 16; mask > 0; mask /= 2) delta += __shfl_xor_sync(0xffffffffU, delta, mask);
  if (lane != 0) return;
  const std::int64_t head = row % n.heads;
  const std::int64_t token = row / n.heads;
  const std::int64_t to = (token / n.queries * n.heads + head) * n.queries + token % n.queries;
  terms[2 * to] = lse[to] * lse_factor;
  terms[2 * to + 1] = delta;
}

}  // namespace ttt::kernels::cuda
