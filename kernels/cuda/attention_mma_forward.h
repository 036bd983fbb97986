#pragma once
// Attention's forward pass on tensor cores: BF16, head dims that are multiples of 16.

#include "kernels/cuda/attention_mma.h"

namespace ttt::kernels::cuda::attention_mma {

template <int kDim>
struct ForwardTile {
  static constexpr int kBlocks =
      2;  // of 16 queries a warp: a fragment of keys or values serves them all
  static constexpr int kQueries = 16 * kBlocks * kWarps;
  static constexpr int kKeys = kDim <= 64 ? 64 : 32;
  static constexpr std::size_t kSharedBytes =
      sizeof(BFloat16) * kStride<kDim> * (kQueries + 2 * kKeys);
};

/// Scores times `factor`; -inf where column > limit (+ 8 for the lane's second row), the lane's columns at 2 (lane % 4).
template <int kTiles>
__device__ __forceinline__ void scale_and_mask(float (&scores)[kTiles][4], float factor,
                                               bool is_masked, int limit) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool is_seen = !is_masked || tile * 8 + e % 2 <= limit + e / 2 * 8;
      scores[tile][e] = is_seen ? scores[tile][e] * factor : -INFINITY;
    }
  }
}

/// The running softmax of two rows of a lane, in powers of two. `sum` is the lane's part of the row's.
struct RunningSoftmax {
  float largest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};
};

/// Turns scores into 2^(score - largest), and scales what was summed before to the new largest.
template <int kTiles, int kOutTiles>
__device__ __forceinline__ void add_to_softmax(RunningSoftmax& softmax, float (&scores)[kTiles][4],
                                               float (&out)[kOutTiles][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float high = softmax.largest[half];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      high = fmaxf(high, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
    }
    high = fmaxf(high, __shfl_xor_sync(0xffffffffU, high, 1));
    high = fmaxf(high, __shfl_xor_sync(0xffffffffU, high, 2));
    const float shrink = exp2f(softmax.largest[half] - high);
    float total = softmax.sum[half] * shrink;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        scores[tile][e] = exp2f(scores[tile][e] - high);
        total += scores[tile][e];
      }
    }
    softmax.largest[half] = high;
    softmax.sum[half] = total;
#pragma unroll
    for (int tile = 0; tile < kOutTiles; ++tile) {
      out[tile][2 * half] *= shrink;
      out[tile][2 * half + 1] *= shrink;
    }
  }
}

/// out /= sum of its row; stores lse of this block's 16 rows, `rows` of which exist.
template <int kTiles>
__device__ __forceinline__ void finish_softmax(RunningSoftmax& softmax, float (&out)[kTiles][4],
                                               float* lse, int rows) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = softmax.sum[half];
    sum += __shfl_xor_sync(0xffffffffU, sum, 1);
    sum += __shfl_xor_sync(0xffffffffU, sum, 2);
    const float inverse = 1.0F / sum;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      out[tile][2 * half] *= inverse;
      out[tile][2 * half + 1] *= inverse;
    }
    const int row = lane_id() / 4 + 8 * half;
    if (lse != nullptr && lane_id() % 4 == 0 && row < rows) {
      lse[row] = softmax.largest[half] * kLn2 + logf(sum);
    }
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads) forward_kernel(AttentionForward<BFloat16> p) {
  using Tile = ForwardTile<kDim>;
  constexpr int kBlocks = Tile::kBlocks;
  const AttentionSizes n = p.n;
  auto* const q = reinterpret_cast<BFloat16*>(dynamic_shared_memory());
  BFloat16* const k = q + Tile::kQueries * kStride<kDim>;
  BFloat16* const v = k + Tile::kKeys * kStride<kDim>;

  const AttentionPlace at = attention_place(n.batch, n.heads);
  const std::int64_t num_tiles = (n.queries + Tile::kQueries - 1) / Tile::kQueries;
  const std::int64_t query = (num_tiles - 1 - at.tile) * Tile::kQueries;  // the longest first
  const int left = rows_of_tile(n.queries - query, Tile::kQueries);
  const int position = static_cast<int>(query + n.keys - n.queries);  // of the first query
  const int num_keys = position + left;                               // that the last query sees
  const std::int64_t queries = n.query_offset(at.batch, at.head) + query * n.query_stride();
  const std::int64_t keys = n.key_offset(at.batch, at.head / n.group());
  const int first_row = warp_id() * 16 * kBlocks;  // of the warp in the tile
  BFloat16* const own_q = q + first_row * kStride<kDim>;

  load_rows<Tile::kQueries, kDim>(p.q + queries, n.query_stride(), left, q);
  load_rows<Tile::kKeys, kDim>(p.k + keys, n.key_stride(), num_keys, k);
  copy_async_commit();
  RunningSoftmax softmax[kBlocks];
  Fragments<kBlocks, kDim / 8> out = {};
  for (int key = 0; key < num_keys; key += Tile::kKeys) {
    copy_async_wait<0>();
    __syncthreads();  // keys are there, and the values before them are read
    load_rows<Tile::kKeys, kDim>(p.v + keys + key * n.key_stride(), n.key_stride(), num_keys - key,
                                 v);
    copy_async_commit();
    // Warps whose queries do not exist or see none of these keys have nothing to add. Their scores are made all the
    // same: a branch here costs the registers that make larger head dims spill.
    const bool is_seen = first_row < left && key < position + first_row + 16 * kBlocks;
    Fragments<kBlocks, Tile::kKeys / 8> scores = {};
    multiply_transposed<kDim>(scores, own_q, k);
    copy_async_wait<0>();
    __syncthreads();  // values are there, and the keys before them are read
    const int next = key + Tile::kKeys;
    if (next < num_keys) {
      load_rows<Tile::kKeys, kDim>(p.k + keys + next * n.key_stride(), n.key_stride(),
                                   num_keys - next, k);
    }
    copy_async_commit();
    if (!is_seen) continue;
    const bool is_masked = next - 1 > position + first_row;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int row = first_row + block * 16 + lane_id() / 4;
      scale_and_mask(scores[block], p.scale * kLog2E, is_masked,
                     position - key + row - lane_id() % 4 * 2);
      add_to_softmax(softmax[block], scores[block], out[block]);
    }
    multiply<kDim>(out, scores, v);
  }
  if (first_row >= left) return;  // no barriers of the block follow
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const int row = first_row + block * 16;
    float* const lse = p.lse == nullptr
                           ? nullptr
                           : p.lse + (at.batch * n.heads + at.head) * n.queries + query + row;
    finish_softmax(softmax[block], out[block], lse, left - row);
  }
  store_rows<kDim>(out, 1.0F, own_q, p.out + queries + first_row * n.query_stride(),
                   n.query_stride(), left - first_row);
}

}  // namespace ttt::kernels::cuda::attention_mma
