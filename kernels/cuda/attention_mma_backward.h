#pragma once
// Attention's backward pass on tensor cores: BF16, head dims that are multiples of 16. One kernel walks the queries of
// a tile of keys, one the keys of a tile of queries: no atomics, at the price of making the scores twice.

#include "kernels/cuda/attention_mma.h"

namespace ttt::kernels::cuda::attention_mma {

// Sizes that leave a thread's accumulators and two tiles of scores in its 255 registers.
template <int kDim>
struct BackwardQueriesTile {
  static constexpr int kBlocks = kDim <= 64 ? 2 : 1;
  static constexpr int kQueries = 16 * kBlocks * kWarps;
  static constexpr int kKeys = kDim <= 64 ? 32 : 64;
  static constexpr std::size_t kSharedBytes =
      sizeof(BFloat16) * kStride<kDim> * (2 * kQueries + 2 * 2 * kKeys);
};

template <int kDim>
struct BackwardKeysTile {
  static constexpr int kBlocks = kDim <= 64 ? 2 : 1;
  static constexpr int kKeys = 16 * kBlocks * kWarps;
  static constexpr int kQueries = 32;
  static constexpr std::size_t kSharedBytes =
      sizeof(BFloat16) * kStride<kDim> * (2 * kKeys + 2 * 2 * kQueries) +
      sizeof(float) * 2 * 2 * kQueries;
};

/// d_q of one tile of queries: all keys that it sees.
template <int kDim>
__global__ void __launch_bounds__(kThreads) backward_queries_kernel(AttentionBackward<BFloat16> p) {
  using Tile = BackwardQueriesTile<kDim>;
  constexpr int kBlocks = Tile::kBlocks;
  constexpr int kKeyElements = Tile::kKeys * kStride<kDim>;
  const AttentionSizes n = p.n;
  auto* const q = reinterpret_cast<BFloat16*>(dynamic_shared_memory());
  BFloat16* const d_out = q + Tile::kQueries * kStride<kDim>;
  BFloat16* const kv = d_out + Tile::kQueries * kStride<kDim>;  // [2 stages][k, v]

  const AttentionPlace at = attention_place(n.batch, n.heads);
  const std::int64_t num_tiles = (n.queries + Tile::kQueries - 1) / Tile::kQueries;
  const std::int64_t query = (num_tiles - 1 - at.tile) * Tile::kQueries;  // the longest first
  const int left = rows_of_tile(n.queries - query, Tile::kQueries);
  const int num_keys = static_cast<int>(query) + left;
  const std::int64_t queries = n.query_offset(at.batch, at.head) + query * n.query_stride();
  const std::int64_t keys = n.key_offset(at.batch, at.head / n.group());
  const int first_row = warp_id() * 16 * kBlocks;  // of the warp in the tile
  const int position = static_cast<int>(query) + first_row;

  const auto queue_keys = [&](int key, int stage) {
    const std::int64_t from = keys + key * n.key_stride();
    BFloat16* const to = kv + stage * 2 * kKeyElements;
    load_rows<Tile::kKeys, kDim>(p.k + from, n.key_stride(), num_keys - key, to);
    load_rows<Tile::kKeys, kDim>(p.v + from, n.key_stride(), num_keys - key, to + kKeyElements);
  };
  load_rows<Tile::kQueries, kDim>(p.q + queries, n.query_stride(), left, q);
  load_rows<Tile::kQueries, kDim>(p.d_out + queries, n.query_stride(), left, d_out);
  queue_keys(0, 0);
  copy_async_commit();
  float2 terms[kBlocks][2];  // lse and delta of the lane's rows; zeros for rows that do not exist
#pragma unroll
  for (int i = 0; i < 2 * kBlocks; ++i) {
    const std::int64_t row = position + i * 8 + lane_id() / 4;
    const std::int64_t index = (at.batch * n.heads + at.head) * n.queries + row;
    terms[i / 2][i % 2] =
        row < n.queries ? reinterpret_cast<const float2*>(p.terms)[index] : make_float2(0.0F, 0.0F);
  }

  Fragments<kBlocks, kDim / 8> d_q = {};
  int stage = 0;
  for (int key = 0; key < num_keys; key += Tile::kKeys, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this stage is there, and the other one is read
    const int next = key + Tile::kKeys;
    if (next < num_keys) queue_keys(next, stage ^ 1);
    copy_async_commit();
    if (first_row >= left || key >= position + 16 * kBlocks) continue;  // sees none of these keys
    const BFloat16* const k = kv + stage * 2 * kKeyElements;
    Fragments<kBlocks, Tile::kKeys / 8> p_scores = {}, d_scores = {};
    multiply_transposed<kDim>(p_scores, q + first_row * kStride<kDim>, k);
    multiply_transposed<kDim>(d_scores, d_out + first_row * kStride<kDim>, k + kKeyElements);
    const int limit = position - key + lane_id() / 4 - lane_id() % 4 * 2;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int tile = 0; tile < Tile::kKeys / 8; ++tile) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const bool is_seen = tile * 8 + e % 2 <= limit + block * 16 + e / 2 * 8;
          const float2& row = terms[block][e / 2];
          const float x = exp2f(p_scores[block][tile][e] * (p.scale * kLog2E) - row.x);
          d_scores[block][tile][e] = is_seen ? x * (d_scores[block][tile][e] - row.y) : 0.0F;
        }
      }
    }
    multiply<kDim>(d_q, d_scores, k);
  }
  store_rows<kDim>(d_q, p.scale, q + first_row * kStride<kDim>,
                   p.d_q + queries + first_row * n.query_stride(), n.query_stride(),
                   left - first_row);
}

/// d_k and d_v of one tile of keys: all queries that see it, of the group's heads in their order. Scores are made
/// transposed, so that keys are the rows of every product.
template <int kDim>
__global__ void __launch_bounds__(kThreads) backward_keys_kernel(AttentionBackward<BFloat16> p) {
  using Tile = BackwardKeysTile<kDim>;
  constexpr int kBlocks = Tile::kBlocks;
  constexpr int kQueryElements = Tile::kQueries * kStride<kDim>;
  const AttentionSizes n = p.n;
  auto* const k = reinterpret_cast<BFloat16*>(dynamic_shared_memory());
  BFloat16* const v = k + Tile::kKeys * kStride<kDim>;
  BFloat16* const queries = v + Tile::kKeys * kStride<kDim>;  // [2 stages][q, d_out]
  auto* const terms = reinterpret_cast<float*>(queries + 4 * kQueryElements);  // [2 stages]

  const AttentionPlace at = attention_place(n.batch, n.key_heads);
  const int key = static_cast<int>(at.tile) * Tile::kKeys;
  const int left = static_cast<int>(n.queries) - key;  // keys, and queries that see them
  const std::int64_t keys = n.key_offset(at.batch, at.head) + key * n.key_stride();
  const int first_row = warp_id() * 16 * kBlocks;  // of the warp in the tile
  const int group = static_cast<int>(n.group());
  const std::int64_t head = at.head * group;

  // Queries [begin, ..) after the first that sees a key of the tile.
  const auto queue_queries = [&](int h, int begin, int stage) {
    const std::int64_t row = key + begin;
    const std::int64_t from = n.query_offset(at.batch, head + h) + row * n.query_stride();
    BFloat16* const to = queries + stage * 2 * kQueryElements;
    load_rows<Tile::kQueries, kDim>(p.q + from, n.query_stride(), left - begin, to);
    load_rows<Tile::kQueries, kDim>(p.d_out + from, n.query_stride(), left - begin,
                                    to + kQueryElements);
    const int term = static_cast<int>(threadIdx.x);
    if (term >= 2 * Tile::kQueries) return;
    float* const to_term = terms + stage * 2 * Tile::kQueries + term;
    if (begin + term / 2 < left) {
      copy_async_4(to_term,
                   p.terms + 2 * ((at.batch * n.heads + head + h) * n.queries + row) + term);
    } else {
      *to_term = 0;  // with d_out = 0: no gradients
    }
  };
  load_rows<Tile::kKeys, kDim>(p.k + keys, n.key_stride(), left, k);
  load_rows<Tile::kKeys, kDim>(p.v + keys, n.key_stride(), left, v);
  queue_queries(0, 0, 0);
  copy_async_commit();

  Fragments<kBlocks, kDim / 8> d_k = {}, d_v = {};
  int stage = 0;
  for (int h = 0, begin = 0; h < group; stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();                      // this stage is there, and the other one is read
    const int ahead = begin - first_row;  // of the warp's first key
    begin += Tile::kQueries;
    if (begin >= left) {
      begin = 0;
      ++h;
    }
    if (h < group) queue_queries(h, begin, stage ^ 1);
    copy_async_commit();
    if (ahead + Tile::kQueries <= 0) continue;  // none sees the warp's keys
    const BFloat16* const q = queries + stage * 2 * kQueryElements;
    const BFloat16* const d_out = q + kQueryElements;
    Fragments<kBlocks, Tile::kQueries / 8> p_scores = {}, d_scores = {};
    multiply_transposed<kDim>(p_scores, k + first_row * kStride<kDim>, q);
    multiply_transposed<kDim>(d_scores, v + first_row * kStride<kDim>, d_out);
    const int limit = ahead - lane_id() / 4 + lane_id() % 4 * 2;
#pragma unroll
    for (int tile = 0; tile < Tile::kQueries / 8; ++tile) {
      const float4 columns = *reinterpret_cast<const float4*>(
          terms + 2 * (stage * Tile::kQueries + tile * 8 + lane_id() % 4 * 2));
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const bool is_seen = block * 16 + e / 2 * 8 <= limit + tile * 8 + e % 2;
          const float lse = e % 2 == 0 ? columns.x : columns.z;
          const float delta = e % 2 == 0 ? columns.y : columns.w;
          const float x = exp2f(p_scores[block][tile][e] * (p.scale * kLog2E) - lse);
          p_scores[block][tile][e] = is_seen ? x : 0.0F;
          d_scores[block][tile][e] = is_seen ? x * (d_scores[block][tile][e] - delta) : 0.0F;
        }
      }
    }
    multiply<kDim>(d_v, p_scores, d_out);
    multiply<kDim>(d_k, d_scores, q);
  }
  const std::int64_t to = keys + first_row * n.key_stride();
  const int rows = left - first_row;
  store_rows<kDim>(d_k, p.scale, k + first_row * kStride<kDim>, p.d_k + to, n.key_stride(), rows);
  store_rows<kDim>(d_v, 1.0F, v + first_row * kStride<kDim>, p.d_v + to, n.key_stride(), rows);
}

}  // namespace ttt::kernels::cuda::attention_mma
