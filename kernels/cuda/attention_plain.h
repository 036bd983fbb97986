#pragma once
// Attention in fp32 without tensor cores: F32 activations, and BF16 of head dims that the tensor-core kernels do not
// serve. Tiles, scores and accumulators lie in shared memory.

#include <cmath>

#include "kernels/cuda/attention_call.h"
#include "kernels/cuda/attention_tiles.h"

namespace ttt::kernels::cuda {

/// kRows and kColumns sixteens of queries and keys a tile.
template <int kRows, int kColumns>
struct PlainForwardTile {
  static constexpr int kQueries = tiles::kSide * kRows;
  static constexpr int kKeys = tiles::kSide * kColumns;

  static std::int64_t shared_bytes(std::int64_t dim) {
    const std::int64_t stride = tiles::stride_of(dim);
    const std::int64_t floats =
        (2 * kQueries + kKeys) * stride + kQueries * (tiles::stride_of(kKeys) + 3);
    return floats * static_cast<std::int64_t>(sizeof(float));
  }
};

// Turns each row of scores into exp(score - largest), a warp a row. `shrink` is what earlier sums are worth then.
__device__ __forceinline__ void add_to_softmax(float* scores, int stride, int rows, int width,
                                               float* largest, float* sum, float* shrink) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = static_cast<int>(threadIdx.x) / 32; i < rows; i += tiles::kWarps) {
    float* const row = scores + i * stride;
    const float before = largest[i];
    float high = before;
    for (int j = lane; j < width; j += 32) high = fmaxf(high, row[j]);
    high = tiles::warp_max(high);
    float total = 0;
    for (int j = lane; j < width; j += 32) {
      row[j] = expf(row[j] - high);
      total += row[j];
    }
    total = tiles::warp_sum(total);
    __syncwarp();  // all lanes have read largest[i]
    if (lane == 0) {
      shrink[i] = expf(before - high);
      sum[i] = sum[i] * shrink[i] + total;
      largest[i] = high;
    }
  }
}

template <typename T, int kRows, int kColumns>
__global__ void __launch_bounds__(tiles::kThreads, 1) plain_forward_kernel(AttentionForward<T> p) {
  using Tile = PlainForwardTile<kRows, kColumns>;
  constexpr int kPairStride = tiles::stride_of(Tile::kKeys);
  const AttentionSizes n = p.n;
  const int dim = static_cast<int>(n.dim);
  const int stride = tiles::stride_of(dim);
  tiles::Shared shared;
  float* const q = shared.take(Tile::kQueries * stride);
  float* const kv = shared.take(Tile::kKeys * stride);  // keys, then their values
  float* const out = shared.take(Tile::kQueries * stride);
  float* const scores = shared.take(Tile::kQueries * kPairStride);
  float* const largest = shared.take(Tile::kQueries);
  float* const sum = shared.take(Tile::kQueries);
  float* const shrink = shared.take(Tile::kQueries);

  const AttentionPlace at = attention_place(n.batch, n.heads);
  const std::int64_t num_tiles = (n.queries + Tile::kQueries - 1) / Tile::kQueries;
  const std::int64_t query = (num_tiles - 1 - at.tile) * Tile::kQueries;  // the longest first
  const int rows = rows_of_tile(n.queries - query, Tile::kQueries);
  const std::int64_t position = query + n.keys - n.queries;
  const std::int64_t num_keys = position + rows;  // of the last row
  const std::int64_t queries = n.query_offset(at.batch, at.head) + query * n.query_stride();
  const std::int64_t keys = n.key_offset(at.batch, at.head / n.group());

  tiles::load_rows(p.q + queries, n.query_stride(), rows, dim, q,
                   [&](int, float x) { return x * p.scale; });
  tiles::fill(out, rows * stride, 0.0F);
  tiles::fill(largest, rows, -INFINITY);
  tiles::fill(sum, rows, 0.0F);
  const auto same = [](int, float x) { return x; };
  for (std::int64_t key = 0; key < num_keys; key += Tile::kKeys) {
    const int width = rows_of_tile(num_keys - key, Tile::kKeys);
    const std::int64_t tile = keys + key * n.key_stride();
    tiles::load_rows(p.k + tile, n.key_stride(), width, dim, kv, same);
    __syncthreads();
    tiles::multiply<kRows, kColumns>(
        rows, width, {tiles::plain(q, stride), tiles::transposed(kv, stride), dim},
        [&](int i, int j, float score) {
          scores[i * kPairStride + j] = key + j <= position + i ? score : -INFINITY;
        });
    __syncthreads();
    add_to_softmax(scores, kPairStride, rows, width, largest, sum, shrink);
    tiles::load_rows(p.v + tile, n.key_stride(), width, dim, kv, same);
    __syncthreads();
    tiles::multiply<kRows, 4>(rows, dim,
                              {tiles::plain(scores, kPairStride), tiles::plain(kv, stride), width},
                              [&](int i, int j, float part) {
                                out[i * stride + j] = out[i * stride + j] * shrink[i] + part;
                              });
    __syncthreads();
  }
  tiles::store_rows(p.out + queries, n.query_stride(), rows, dim,
                    [&](int i, int j) { return out[i * stride + j] / sum[i]; });
  const int i = static_cast<int>(threadIdx.x);
  if (p.lse != nullptr && i < rows) {
    p.lse[(at.batch * n.heads + at.head) * n.queries + query + i] = largest[i] + logf(sum[i]);
  }
}

/// Tiles of 16 kRows queries and as many keys.
template <int kRows>
struct PlainBackwardTile {
  static constexpr int kSize = tiles::kSide * kRows;

  static std::int64_t shared_bytes(std::int64_t dim) {
    const std::int64_t floats =
        kSize * (6 * tiles::stride_of(dim) + 2 * tiles::stride_of(kSize) + 2);
    return floats * static_cast<std::int64_t>(sizeof(float));
  }
};

// A tile of queries and one of keys, and what is made of the pairs.
struct PairTiles {
  float *q, *d_out, *k, *v;  // q times scale
  float *p, *d_scores;       // may be the same
  float* terms;              // lse and delta of each query

  __device__ __forceinline__ PairTiles(tiles::Shared& shared, int tile)
      : q(shared.take(tile)),
        d_out(shared.take(tile)),
        k(shared.take(tile)),
        v(shared.take(tile)) {}
};

// p = exp(score - lse) and d_scores = p (d_p - delta). Key j of the tile is seen by query i when j <= i + offset.
template <int kRows>
__device__ __forceinline__ void score_gradients(const PairTiles& t, int rows, int width, int dim,
                                                std::int64_t offset) {
  constexpr int kPairStride = tiles::stride_of(PlainBackwardTile<kRows>::kSize);
  const int stride = tiles::stride_of(dim);
  tiles::multiply<kRows, kRows>(
      rows, width, {tiles::plain(t.q, stride), tiles::transposed(t.k, stride), dim},
      [&](int i, int j, float score) {
        t.p[i * kPairStride + j] = j <= i + offset ? expf(score - t.terms[2 * i]) : 0.0F;
      });
  // The same thread's elements: no barrier between.
  tiles::multiply<kRows, kRows>(
      rows, width, {tiles::plain(t.d_out, stride), tiles::transposed(t.v, stride), dim},
      [&](int i, int j, float d_p) {
        t.d_scores[i * kPairStride + j] = t.p[i * kPairStride + j] * (d_p - t.terms[2 * i + 1]);
      });
}

// The queries' side of a pair of tiles.
template <typename T>
__device__ __forceinline__ void load_queries(const AttentionBackward<T>& p, std::int64_t batch,
                                             std::int64_t head, std::int64_t query, int rows,
                                             const PairTiles& t) {
  const AttentionSizes& n = p.n;
  const int dim = static_cast<int>(n.dim);
  const std::int64_t from = n.query_offset(batch, head) + query * n.query_stride();
  tiles::load_rows(p.q + from, n.query_stride(), rows, dim, t.q,
                   [&](int, float x) { return x * p.scale; });
  tiles::load_rows(p.d_out + from, n.query_stride(), rows, dim, t.d_out,
                   [](int, float x) { return x; });
  const float* const terms = p.terms + 2 * ((batch * n.heads + head) * n.queries + query);
  for (int i = static_cast<int>(threadIdx.x); i < 2 * rows; i += tiles::kThreads) {
    t.terms[i] = terms[i];
  }
}

template <typename T>
__device__ __forceinline__ void load_keys(const AttentionBackward<T>& p, std::int64_t batch,
                                          std::int64_t key_head, std::int64_t key, int width,
                                          const PairTiles& t) {
  const AttentionSizes& n = p.n;
  const int dim = static_cast<int>(n.dim);
  const std::int64_t from = n.key_offset(batch, key_head) + key * n.key_stride();
  const auto same = [](int, float x) { return x; };
  tiles::load_rows(p.k + from, n.key_stride(), width, dim, t.k, same);
  tiles::load_rows(p.v + from, n.key_stride(), width, dim, t.v, same);
}

/// d_k and d_v of one tile of keys: all queries that see it, of the group's heads in their order.
template <typename T, int kRows>
__global__ void __launch_bounds__(tiles::kThreads, 1)
    plain_backward_keys_kernel(AttentionBackward<T> p) {
  constexpr int kSize = PlainBackwardTile<kRows>::kSize;
  constexpr int kPairStride = tiles::stride_of(kSize);
  const AttentionSizes n = p.n;
  const int dim = static_cast<int>(n.dim);
  const int stride = tiles::stride_of(dim);
  tiles::Shared shared;
  PairTiles t(shared, kSize * stride);
  float* const d_k = shared.take(kSize * stride);
  float* const d_v = shared.take(kSize * stride);
  t.p = shared.take(kSize * kPairStride);
  t.d_scores = shared.take(kSize * kPairStride);
  t.terms = shared.take(2 * kSize);

  const AttentionPlace at = attention_place(n.batch, n.key_heads);
  const std::int64_t key = at.tile * kSize;
  const int width = rows_of_tile(n.keys - key, kSize);
  load_keys(p, at.batch, at.head, key, width, t);
  tiles::fill(d_k, width * stride, 0.0F);
  tiles::fill(d_v, width * stride, 0.0F);
  for (std::int64_t h = at.head * n.group(); h < (at.head + 1) * n.group(); ++h) {
    for (std::int64_t query = key; query < n.queries; query += kSize) {
      const int rows = rows_of_tile(n.queries - query, kSize);
      load_queries(p, at.batch, h, query, rows, t);
      __syncthreads();
      score_gradients<kRows>(t, rows, width, dim, query - key);
      __syncthreads();
      tiles::multiply<kRows, 4>(
          width, dim, {tiles::transposed(t.p, kPairStride), tiles::plain(t.d_out, stride), rows},
          [&](int i, int j, float part) { d_v[i * stride + j] += part; });
      tiles::multiply<kRows, 4>(
          width, dim, {tiles::transposed(t.d_scores, kPairStride), tiles::plain(t.q, stride), rows},
          [&](int i, int j, float part) { d_k[i * stride + j] += part; });
      __syncthreads();
    }
  }
  const std::int64_t to = n.key_offset(at.batch, at.head) + key * n.key_stride();
  tiles::store_rows(p.d_k + to, n.key_stride(), width, dim,
                    [&](int i, int j) { return d_k[i * stride + j]; });
  tiles::store_rows(p.d_v + to, n.key_stride(), width, dim,
                    [&](int i, int j) { return d_v[i * stride + j]; });
}

/// d_q of one tile of queries: all keys that it sees.
template <typename T, int kRows>
__global__ void __launch_bounds__(tiles::kThreads, 1)
    plain_backward_queries_kernel(AttentionBackward<T> p) {
  constexpr int kSize = PlainBackwardTile<kRows>::kSize;
  constexpr int kPairStride = tiles::stride_of(kSize);
  const AttentionSizes n = p.n;
  const int dim = static_cast<int>(n.dim);
  const int stride = tiles::stride_of(dim);
  tiles::Shared shared;
  PairTiles t(shared, kSize * stride);
  float* const d_q = shared.take(kSize * stride);
  t.p = shared.take(kSize * kPairStride);
  t.d_scores = t.p;
  t.terms = shared.take(2 * kSize);

  const AttentionPlace at = attention_place(n.batch, n.heads);
  const std::int64_t num_tiles = (n.queries + kSize - 1) / kSize;
  const std::int64_t query = (num_tiles - 1 - at.tile) * kSize;  // the longest first
  const int rows = rows_of_tile(n.queries - query, kSize);
  load_queries(p, at.batch, at.head, query, rows, t);
  tiles::fill(d_q, rows * stride, 0.0F);
  for (std::int64_t key = 0; key < query + rows; key += kSize) {
    const int width = rows_of_tile(query + rows - key, kSize);
    load_keys(p, at.batch, at.head / n.group(), key, width, t);
    __syncthreads();
    score_gradients<kRows>(t, rows, width, dim, query - key);
    __syncthreads();
    tiles::multiply<kRows, 4>(
        rows, dim, {tiles::plain(t.d_scores, kPairStride), tiles::plain(t.k, stride), width},
        [&](int i, int j, float part) { d_q[i * stride + j] += part; });
    __syncthreads();
  }
  tiles::store_rows(p.d_q + n.query_offset(at.batch, at.head) + query * n.query_stride(),
                    n.query_stride(), rows, dim,
                    [&](int i, int j) { return p.scale * d_q[i * stride + j]; });
}

}  // namespace ttt::kernels::cuda
