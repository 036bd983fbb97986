#pragma once
// Pieces of the tensor-core attention kernels: tiles of bf16 rows in shared memory, and products of a warp.
//
// A warp holds blocks of 16 rows; scores leave the tensor cores in the fragments in which the next product wants them,
// so probabilities never pass through shared memory.
// Source: arXiv:2307.08691 (FlashAttention-2); the layout of fragments in kernels/cuda/simt.h.

#include <cmath>

#include "kernels/cuda/attention_call.h"

namespace ttt::kernels::cuda::attention_mma {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr float kLog2E = 1.4426950408889634F;
constexpr float kLn2 = 0.69314718055994531F;

/// Elements between rows in shared memory: 16 bytes more than the row, an odd number of 16-byte chunks, so that eight
/// rows of a chunk lie in different banks.
template <int kDim>
constexpr int kStride = kDim + 8;

template <int kBlocks, int kTiles>
using Fragments = float[kBlocks][kTiles][4];

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / 32; }

/// Queues the copy of `rows` rows to a tile of kRows; its further rows are set to zero.
template <int kRows, int kDim>
__device__ __forceinline__ void load_rows(const BFloat16* from, std::int64_t from_stride, int rows,
                                          BFloat16* to) {
  constexpr int kAcross = kDim % 64 == 0 ? 8 : 4;  // threads of a row
  constexpr int kStep = kThreads / kAcross;        // rows at a time
  static_assert(kRows % kStep == 0 && kDim % (8 * kAcross) == 0);
  const int first = static_cast<int>(threadIdx.x) / kAcross;
  const int column = static_cast<int>(threadIdx.x) % kAcross * 8;
  const int left = rows - first;
  // One running pointer: addresses of every row, kept over the caller's loop, would cost registers.
  from += first * from_stride + column;
  to += first * kStride<kDim> + column;
#pragma unroll
  for (int row = 0; row < kRows; row += kStep, from += kStep * from_stride) {
#pragma unroll
    for (int chunk = 0; chunk < kDim; chunk += 8 * kAcross) {
      BFloat16* const to_chunk = to + row * kStride<kDim> + chunk;
      if (row < left) {
        copy_async_16(to_chunk, from + chunk);
      } else {
        *reinterpret_cast<uint4*>(to_chunk) = uint4{0, 0, 0, 0};
      }
    }
  }
}

/// c [16 kBlocks, 8 kTiles] += a b^T, with the rows [.., kDim] of both in shared memory.
template <int kDim, int kBlocks, int kTiles>
__device__ __forceinline__ void multiply_transposed(Fragments<kBlocks, kTiles>& c,
                                                    const BFloat16* a, const BFloat16* b) {
  const int lane = lane_id();
  const BFloat16* const a_row = a + lane % 16 * kStride<kDim> + lane / 16 * 8;
  const BFloat16* const b_row = b + (lane % 8 + lane / 16 * 8) * kStride<kDim> + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < kDim; k += 16) {
    std::uint32_t left[kBlocks][4];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      ldmatrix_x4(left[block], a_row + block * 16 * kStride<kDim> + k);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      std::uint32_t right[4];
      ldmatrix_x4(right, b_row + tile * 8 * kStride<kDim> + k);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        mma_m16n8k16(c[block][tile], left[block], right[0], right[1]);
        mma_m16n8k16(c[block][tile + 1], left[block], right[2], right[3]);
      }
    }
  }
}

/// c [16 kBlocks, kDim] += a b: a [16 kBlocks, 8 kTiles] rounded to bf16, b's rows [8 kTiles, kDim] in shared memory.
template <int kDim, int kBlocks, int kTiles>
__device__ __forceinline__ void multiply(Fragments<kBlocks, kDim / 8>& c,
                                         const Fragments<kBlocks, kTiles>& a, const BFloat16* b) {
  const int lane = lane_id();
  const BFloat16* const b_row = b + lane % 16 * kStride<kDim> + lane / 16 * 8;
#pragma unroll
  for (int step = 0; step < kTiles / 2; ++step) {
    std::uint32_t left[kBlocks][4];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const auto& x = a[block][2 * step];
      const auto& y = a[block][2 * step + 1];
      left[block][0] = pack_bf16(x[0], x[1]);
      left[block][1] = pack_bf16(x[2], x[3]);
      left[block][2] = pack_bf16(y[0], y[1]);
      left[block][3] = pack_bf16(y[2], y[3]);
    }
#pragma unroll
    for (int tile = 0; tile < kDim / 8; tile += 2) {
      std::uint32_t right[4];
      ldmatrix_x4_transposed(right, b_row + step * 16 * kStride<kDim> + tile * 8);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        mma_m16n8k16(c[block][tile], left[block], right[0], right[1]);
        mma_m16n8k16(c[block][tile + 1], left[block], right[2], right[3]);
      }
    }
  }
}

/// to's first `rows` of 16 kBlocks rows = factor c, through the warp's own rows in shared memory: coalesced.
template <int kDim, int kBlocks>
__device__ __forceinline__ void store_rows(const Fragments<kBlocks, kDim / 8>& c, float factor,
                                           BFloat16* shared, BFloat16* to, std::int64_t to_stride,
                                           int rows) {
  const int lane = lane_id();
  __syncwarp();  // what other lanes read there
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int tile = 0; tile < kDim / 8; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = block * 16 + half * 8 + lane / 4;
        const int column = tile * 8 + lane % 4 * 2;
        *reinterpret_cast<std::uint32_t*>(shared + row * kStride<kDim> + column) =
            pack_bf16(c[block][tile][2 * half] * factor, c[block][tile][2 * half + 1] * factor);
      }
    }
  }
  __syncwarp();
  constexpr int kChunks = kDim / 8;
  for (int i = lane; i < 16 * kBlocks * kChunks; i += 32) {
    const int row = i / kChunks;
    const int column = i % kChunks * 8;
    if (row < rows) {
      *reinterpret_cast<uint4*>(to + row * to_stride + column) =
          *reinterpret_cast<const uint4*>(shared + row * kStride<kDim> + column);
    }
  }
}

}  // namespace ttt::kernels::cuda::attention_mma
