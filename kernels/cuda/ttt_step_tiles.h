#pragma once
// What the fused decode steps of TTT-Linear and TTT-MLP share (kernels/ttt.h, ttt_step). Matrices of F x F are tiles in
// the registers of a block, vectors lie in shared memory, and all arithmetic is fp32: a step reads each number of
// the state once and uses it a few times, so tensor cores would gain nothing.

#include <cstddef>
#include <cstdint>

#include "core/base/tensor.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ttt_tiles.h"
#include "kernels/ttt.h"

namespace ttt::kernels::cuda::step {

/// A block is `kGroups` groups of F / 4 threads; a group holds every kGroups-th row.
template <int F, int kGroups>
constexpr int kThreads = kGroups* F / 4;

/// The tokens of a call; T is the element type of activations.
template <typename T>
struct Tokens {
  const T *q, *k, *v;                    // [B, T, H, F]
  T* out;                                // [B, T, H, F]
  const float *token_lr, *token_scale;   // [B, T, H], [K]
  const float *norm_weight, *norm_bias;  // [H, F]
  int count, heads;                      // T, H
  int place;                             // of the first token in its mini-batch
  bool ends_mini_batch;

  /// Of a pair's token in [B, T, H, ...].
  __device__ int row(int pair, int token) const {
    return (pair / heads * count + token) * heads + pair % heads;
  }
  __device__ float scale(int token) const { return token_scale[place + token]; }
};

template <typename T>
Tokens<T> tokens_of(const TttInputs& inputs, const TttOptions& options, std::int64_t place,
                    TensorView out) {
  return {inputs.q.data<T>(),
          inputs.k.data<T>(),
          inputs.v.data<T>(),
          out.data<T>(),
          inputs.token_lr.data<float>(),
          inputs.token_scale.data<float>(),
          inputs.norm_weight.data<float>(),
          inputs.norm_bias.data<float>(),
          static_cast<int>(inputs.q.size(1)),
          static_cast<int>(inputs.q.size(2)),
          static_cast<int>(place),
          place + inputs.q.size(1) == options.mini_batch_size};
}

/// A matrix of the state, which the kernels read and write 16 bytes at a time.
inline float* matrix_of(const TensorView& tensor) {
  constexpr std::uintptr_t kBytes = 16;
  auto* const data = tensor.data<float>();
  TTT_CHECK(reinterpret_cast<std::uintptr_t>(data) % kBytes == 0,
            "a state's matrices must be aligned to {} bytes", kBytes);
  return data;
}

#if defined(__CUDACC__) || defined(TTT_SIMT_EMULATOR)

/// F x F: a thread has the columns [column, column + 4) of rows row, row + kGroups, ...: a warp's load is 512 bytes in a
/// row.
template <int F, int kGroups>
struct Tile {
  static constexpr int kRows = F / kGroups;
  float4 x[kRows];
};

template <int F>
struct Place {
  int row, column;
  __device__ Place()
      : row(static_cast<int>(threadIdx.x) / (F / 4)),
        column(static_cast<int>(threadIdx.x) % (F / 4) * 4) {}
};

template <int F, int kGroups>
__device__ __forceinline__ void load(Tile<F, kGroups>& tile, const float* from, int stride) {
  const Place<F> at;
#pragma unroll
  for (int i = 0; i < Tile<F, kGroups>::kRows; ++i) {
    const float* const row = from + (at.row + kGroups * i) * stride;
    tile.x[i] = *reinterpret_cast<const float4*>(row + at.column);
  }
}

template <int F, int kGroups>
__device__ __forceinline__ void store(const Tile<F, kGroups>& tile, float* to, int stride) {
  const Place<F> at;
#pragma unroll
  for (int i = 0; i < Tile<F, kGroups>::kRows; ++i) {
    const float4& x = tile.x[i];
    store_16(to + (at.row + kGroups * i) * stride + at.column,
             uint4{float_to_bits(x.x), float_to_bits(x.y), float_to_bits(x.z), float_to_bits(x.w)});
  }
}

/// y += a x
__device__ __forceinline__ void add_scaled(float4& y, float a, const float4& x) {
  y.x += a * x.x;
  y.y += a * x.y;
  y.z += a * x.z;
  y.w += a * x.w;
}

/// tile += x y^T
template <int F, int kGroups>
__device__ __forceinline__ void add_outer_product(Tile<F, kGroups>& tile, const float* x,
                                                  const float* y) {
  const Place<F> at;
  const float4 right = *reinterpret_cast<const float4*>(y + at.column);
#pragma unroll
  for (int i = 0; i < Tile<F, kGroups>::kRows; ++i) {
    add_scaled(tile.x[i], x[at.row + kGroups * i], right);
  }
}

/// tile += a other
template <int F, int kGroups>
__device__ __forceinline__ void add_scaled(Tile<F, kGroups>& tile, float a,
                                           const Tile<F, kGroups>& other) {
#pragma unroll
  for (int i = 0; i < Tile<F, kGroups>::kRows; ++i) add_scaled(tile.x[i], a, other.x[i]);
}

/// The part of x^T tile that the thread's rows give, to partials [kGroups, F].
template <int F, int kGroups>
__device__ __forceinline__ void put_product(float* partials, const float* x,
                                            const Tile<F, kGroups>& tile) {
  const Place<F> at;
  float4 sum{0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < Tile<F, kGroups>::kRows; ++i) {
    add_scaled(sum, x[at.row + kGroups * i], tile.x[i]);
  }
  *reinterpret_cast<float4*>(partials + at.row * F + at.column) = sum;
}

/// Element `column` of the product, after a barrier.
template <int F, int kGroups>
__device__ __forceinline__ float product_at(const float* partials, int column) {
  float sum = 0;
#pragma unroll 8
  for (int row = 0; row < kGroups; ++row) sum += partials[row * F + column];
  return sum;
}

/// k, q and v of a token to rows [3, F].
template <int F, typename T>
__device__ __forceinline__ void load_token(const Tokens<T>& tokens, int row, float* rows) {
  for (int i = static_cast<int>(threadIdx.x); i < 3 * F; i += static_cast<int>(blockDim.x)) {
    const T* const from = i < F ? tokens.k : i < 2 * F ? tokens.q : tokens.v;
    rows[i] = load_float(from[std::int64_t{row} * F + i % F]);
  }
}

// --- one warp: lane l has the features l, l + 32, ... of a row ---

template <int F>
constexpr int kLaneFeatures = F / 32;
template <int F>
using LaneRow = float[kLaneFeatures<F>];

template <int F>
__device__ __forceinline__ int feature_of(int i) {
  return static_cast<int>(threadIdx.x) % 32 + 32 * i;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(fused::kAllLanes, x, mask);
  return x;
}

/// The sum over features of f(i).
template <int F, typename Term>
__device__ __forceinline__ float row_sum(Term&& term) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kLaneFeatures<F>; ++i) sum += term(i);
  return warp_sum(sum);
}

template <int F>
__device__ __forceinline__ void load_row(LaneRow<F>& x, const float* from) {
#pragma unroll
  for (int i = 0; i < kLaneFeatures<F>; ++i) x[i] = from[feature_of<F>(i)];
}
template <int F>
__device__ __forceinline__ void store_row(float* to, const LaneRow<F>& x) {
#pragma unroll
  for (int i = 0; i < kLaneFeatures<F>; ++i) to[feature_of<F>(i)] = x[i];
}

/// gamma and beta of the pair's head [F]: read where they are used, as registers hold the state.
struct HeadNorm {
  const float *weight, *bias;
};

/// z becomes (z - mean) / s; returns 1 / s.
template <int F>
__device__ __forceinline__ float normalize(LaneRow<F>& z) {
  const float mean = row_sum<F>([&](int i) { return z[i]; }) * (1.0F / F);
#pragma unroll
  for (int i = 0; i < kLaneFeatures<F>; ++i) z[i] -= mean;
  const float variance = row_sum<F>([&](int i) { return z[i] * z[i]; }) * (1.0F / F);
  const float rstd = rsqrtf(variance + fused::kNormEpsilon);
#pragma unroll
  for (int i = 0; i < kLaneFeatures<F>; ++i) z[i] *= rstd;
  return rstd;
}

/// z becomes G = grad_z 1/2 |LN(z) - (v - k)|^2; `rows` is the token's [3, F].
template <int F>
__device__ __forceinline__ void loss_gradient(LaneRow<F>& z, const HeadNorm& norm,
                                              const float* rows) {
  const float rstd = normalize<F>(z);
  LaneRow<F> e;
#pragma unroll
  for (int i = 0; i < kLaneFeatures<F>; ++i) {
    const int f = feature_of<F>(i);
    const float target = rows[2 * F + f] - rows[f];
    e[i] = (norm.weight[f] * z[i] + norm.bias[f] - target) * norm.weight[f];
  }
  const float mean_e = row_sum<F>([&](int i) { return e[i]; }) * (1.0F / F);
  const float mean_ez = row_sum<F>([&](int i) { return e[i] * z[i]; }) * (1.0F / F);
#pragma unroll
  for (int i = 0; i < kLaneFeatures<F>; ++i) z[i] = (e[i] - mean_e - z[i] * mean_ez) * rstd;
}

/// q k + 1: what a token's own step weighs in its output.
template <int F>
__device__ __forceinline__ float own_score(const float* rows) {
  return 1.0F +
         row_sum<F>([&](int i) { return rows[feature_of<F>(i)] * rows[F + feature_of<F>(i)]; });
}

/// out = q + LN(z)
template <int F, typename T>
__device__ __forceinline__ void put_output(T* out, LaneRow<F>& z, const HeadNorm& norm,
                                           const float* rows) {
  normalize<F>(z);
#pragma unroll
  for (int i = 0; i < kLaneFeatures<F>; ++i) {
    const int f = feature_of<F>(i);
    store_float(out + f, rows[F + f] + norm.weight[f] * z[i] + norm.bias[f]);
  }
}

#endif

}  // namespace ttt::kernels::cuda::step
