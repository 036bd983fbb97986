#pragma once
// What the TTT-MLP kernels compute element by element, and row by row: one warp a token.

#include "kernels/cuda/simt.h"
#include "kernels/cuda/ttt_mlp.h"

namespace ttt::kernels::cuda::mlp {

struct Gelu {
  float value, slope, bend;  // phi, phi', phi''
};
/// phi(x) = x (1 + tanh w) / 2 with w = a x + b x^3; phi'' uses w'' x = 2 (w' - a).
__device__ __forceinline__ Gelu gelu(float x) {
  constexpr float kA = 0.7978845608028654F;  // sqrt(2 / pi)
  constexpr float kB = 0.044715F * kA;
  const float square = x * x;
  const float half = 0.5F * x;
  const float t = tanh_approximate(x * (kB * square + kA));
  const float inner = 3.0F * kB * square + kA;  // w'
  const float flat = 1.0F - t * t;
  return {half * t + half, half * flat * inner + (0.5F * t + 0.5F),
          flat * (2.0F * inner - kA - x * t * inner * inner)};
}

/// A row lies on the lanes in pairs of neighbouring features: lane l has pair l and, of 96 features, lanes below 16 have
/// pair 32 + l too. What a lane has no feature for is zero, so that sums need not ask.
template <int F>
constexpr int kLanePairs = (F / 2 + 31) / 32;
template <int F>
constexpr int kLaneFeatures = 2 * kLanePairs<F>;
template <int F>
using LaneRow = float[kLaneFeatures<F>];

/// f(i, first feature) for this lane's pairs.
template <int F, typename Function>
__device__ __forceinline__ void for_each_pair(int lane, Function&& f) {
#pragma unroll
  for (int i = 0; i < kLanePairs<F>; ++i) {
    if (32 * (i + 1) <= F / 2 || 32 * i + lane < F / 2) f(i, 2 * (32 * i + lane));
  }
}
/// Of an fp32 row.
template <int F>
__device__ __forceinline__ void load_row(LaneRow<F>& x, const float* row, int lane) {
  for (int e = 0; e < kLaneFeatures<F>; ++e) x[e] = 0;
  for_each_pair<F>(lane, [&](int i, int feature) {
    x[2 * i] = row[feature];
    x[2 * i + 1] = row[feature + 1];
  });
}
/// Of a tile.
template <int F>
__device__ __forceinline__ void load_words(std::uint32_t (&x)[kLanePairs<F>], std::byte* tile,
                                           int row, int lane) {
  for (int i = 0; i < kLanePairs<F>; ++i) x[i] = 0;
  for_each_pair<F>(lane, [&](int i, int feature) { x[i] = pair_at<F>(tile, row, feature); });
}

/// Every sum over the warp's lanes, to all of them. Lanes that differ in one bit take over half of the other's sums until
/// each has one; that one is added up over the other lanes, and all are read from those that have them.
template <int kCount>
__device__ __forceinline__ void sum_over_warp(float (&sums)[kCount]) {
  constexpr int kHeld = kCount == 1 ? 1 : kCount == 2 ? 2 : kCount <= 4 ? 4 : 8;
  static_assert(kCount <= kHeld);
  const auto lane = static_cast<int>(threadIdx.x) & 31;
  float held[kHeld] = {};
  for (int s = 0; s < kCount; ++s) held[s] = sums[s];
#pragma unroll
  for (int half = kHeld / 2; half > 0; half /= 2) {
    const bool takes_upper = (lane & half) != 0;
    for (int s = 0; s < half; ++s) {
      const float sent = takes_upper ? held[s] : held[s + half];
      held[s] = (takes_upper ? held[s + half] : held[s]) + __shfl_xor_sync(kAllLanes, sent, half);
    }
  }
#pragma unroll
  for (int mask = kHeld; mask < 32; mask *= 2) {
    held[0] += __shfl_xor_sync(kAllLanes, held[0], mask);
  }
  for (int s = 0; s < kCount; ++s) sums[s] = __shfl_sync(kAllLanes, held[0], s);
}
template <int F, int kCount>
__device__ __forceinline__ void mean_over_features(float (&sums)[kCount]) {
  sum_over_warp(sums);
  for (int s = 0; s < kCount; ++s) sums[s] *= 1.0F / F;
}
template <int F>
__device__ __forceinline__ float mean_of(const LaneRow<F>& x) {
  float mean[1] = {};
  for (int e = 0; e < kLaneFeatures<F>; ++e) mean[0] += x[e];
  mean_over_features<F>(mean);
  return mean[0];
}

/// Adds the slices' partial sums (`send`) of this warp's token, in order.
template <int F, bool kCluster>
__device__ __forceinline__ void add_partials(LaneRow<F>& z, const float* partial,
                                             const Place<F>& at) {
  constexpr int kRows = kCluster ? kOwnedTokens : kTokens;
  for (int slice = 0; slice < kSlices; ++slice) {
    const int row = slice * kRows + at.token() % kRows;
    for_each_pair<F>(at.lane, [&](int i, int feature) {
      const float2 part =
          *reinterpret_cast<const float2*>(partial + row * kPartialStride<F> + feature);
      z[2 * i] += part.x;
      z[2 * i + 1] += part.y;
    });
  }
}

/// gamma and beta of this lane's features.
template <int F>
struct LaneNorm {
  LaneRow<F> weight, bias;

  __device__ LaneNorm(const float* gamma, const float* beta, int lane) {
    load_row<F>(weight, gamma, lane);
    load_row<F>(bias, beta, lane);
  }
  /// Of gamma over all features.
  [[nodiscard]] __device__ float mean_square() const {
    LaneRow<F> square;
    for (int e = 0; e < kLaneFeatures<F>; ++e) square[e] = weight[e] * weight[e];
    return mean_of<F>(square);
  }
};

/// LN of this warp's row: n = (z - mean) rstd; with a weight of zero where the lane has no feature.
template <int F>
struct NormalizedRow {
  LaneRow<F> n;
  float rstd;

  __device__ explicit NormalizedRow(const LaneRow<F>& z) {
    float mean[2] = {};
    for (int e = 0; e < kLaneFeatures<F>; ++e) {
      mean[0] += z[e];
      mean[1] += z[e] * z[e];
    }
    mean_over_features<F>(mean);
    rstd = rsqrtf(mean[1] - mean[0] * mean[0] + fused::kNormEpsilon);
    for (int e = 0; e < kLaneFeatures<F>; ++e) n[e] = (z[e] - mean[0]) * rstd;
  }
};

/// The inner loss at this warp's row: G = (u - mean(u) - n mean(u n)) rstd with u = gamma e, e = gamma n + beta - target.
template <int F>
struct InnerLossRow {
  LaneRow<F> n, e;
  float rstd, mean_u, mean_un;

  [[nodiscard]] __device__ float gradient(int i, float weight) const {
    return (weight * e[i] - mean_u - n[i] * mean_un) * rstd;
  }
};
/// All means come from sums of one pass, since u = gamma^2 n + gamma gap, gap = beta - (v - k), is linear in z. `square`
/// is the mean of gamma^2.
template <int F>
__device__ __forceinline__ void inner_loss_row(InnerLossRow<F>& row, const LaneRow<F>& z,
                                               const std::uint32_t (&k)[kLanePairs<F>],
                                               const std::uint32_t (&v)[kLanePairs<F>],
                                               const LaneNorm<F>& norm, float square) {
  LaneRow<F> gap;
  for (int i = 0; i < kLanePairs<F>; ++i) {
    gap[2 * i] = norm.bias[2 * i] - low_bf16(v[i]) + low_bf16(k[i]);
    gap[2 * i + 1] = norm.bias[2 * i + 1] - high_bf16(v[i]) + high_bf16(k[i]);
  }
  float mean[6] = {};
  for (int i = 0; i < kLaneFeatures<F>; ++i) {
    const float slope = norm.weight[i] * norm.weight[i];
    const float offset = norm.weight[i] * gap[i];
    mean[0] += z[i];
    mean[1] += z[i] * z[i];
    mean[2] += slope * z[i];
    mean[3] += slope * z[i] * z[i];
    mean[4] += offset * z[i];
    mean[5] += offset;
  }
  mean_over_features<F>(mean);
  const float mu = mean[0];
  row.rstd = rsqrtf(mean[1] - mu * mu + fused::kNormEpsilon);
  row.mean_u = (mean[2] - mu * square) * row.rstd + mean[5];
  row.mean_un =
      ((mean[3] - 2.0F * mu * mean[2] + mu * mu * square) * row.rstd + (mean[4] - mu * mean[5])) *
      row.rstd;
  for (int i = 0; i < kLaneFeatures<F>; ++i) {
    row.n[i] = (z[i] - mu) * row.rstd;
    row.e[i] = norm.weight[i] * row.n[i] + gap[i];
  }
}

}  // namespace ttt::kernels::cuda::mlp
