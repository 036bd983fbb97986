#pragma once
// What the TTT-MLP kernels compute element by element, and row by row: one warp a token, two features a lane.

#include "kernels/cuda/simt.h"
#include "kernels/cuda/ttt_mlp.h"

namespace ttt::kernels::cuda::mlp {

struct Gelu {
  float value, slope, bend;  // phi, phi', phi''
};
__device__ __forceinline__ Gelu gelu(float x) {
  constexpr float kScale = 0.7978845608028654F;  // sqrt(2 / pi)
  constexpr float kCubic = 0.044715F;
  const float t = tanh_approximate(kScale * x * (1.0F + kCubic * x * x));
  const float inner = kScale * (1.0F + 3.0F * kCubic * x * x);
  const float flat = 1.0F - t * t;
  return {0.5F * x * (1.0F + t), 0.5F * (1.0F + t) + 0.5F * x * flat * inner,
          flat * (inner + 0.5F * x * (6.0F * kScale * kCubic * x - 2.0F * t * inner * inner))};
}

/// Every sum over the warp's lanes.
template <int kCount>
__device__ __forceinline__ void sum_over_warp(float (&sums)[kCount]) {
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2) {
    for (int s = 0; s < kCount; ++s) sums[s] += __shfl_xor_sync(kAllLanes, sums[s], mask);
  }
}
template <int kCount>
__device__ __forceinline__ void mean_over_features(float (&sums)[kCount]) {
  sum_over_warp(sums);
  for (int s = 0; s < kCount; ++s) sums[s] *= 1.0F / kFeatures;
}

constexpr float kEpsilon = 1e-6F;

/// gamma and beta of this lane's features 2 lane and 2 lane + 1.
struct LaneNorm {
  float weight[2], bias[2];

  __device__ LaneNorm(const Inputs& in, int head, const Place& at) {
    for (int e = 0; e < 2; ++e) {
      weight[e] = in.norm_weight[head * kFeatures + 2 * at.lane + e];
      bias[e] = in.norm_bias[head * kFeatures + 2 * at.lane + e];
    }
  }
  /// Of gamma over all features.
  [[nodiscard]] __device__ float mean_square() const {
    float mean[1] = {weight[0] * weight[0] + weight[1] * weight[1]};
    mean_over_features(mean);
    return mean[0];
  }
};

/// LN of this warp's row: n = (z - mean) / deviation.
struct NormalizedRow {
  float n[2];
  float rstd;
};
__device__ __forceinline__ NormalizedRow normalize_row(const float (&z)[2]) {
  float mean[2] = {z[0] + z[1], z[0] * z[0] + z[1] * z[1]};
  mean_over_features(mean);
  const float rstd = rsqrtf(mean[1] - mean[0] * mean[0] + kEpsilon);
  return {{(z[0] - mean[0]) * rstd, (z[1] - mean[0]) * rstd}, rstd};
}

/// The inner loss at this warp's row: G = (u - mean(u) - n mean(u n)) rstd with u = gamma e, e = gamma n + beta - target.
struct InnerLossRow {
  float n[2], e[2];
  float rstd, mean_u, mean_un;
  [[nodiscard]] __device__ float gradient(int i, float weight) const {
    return (weight * e[i] - mean_u - n[i] * mean_un) * rstd;
  }
};
/// beta - target; k and v are pairs.
__device__ __forceinline__ void inner_loss_gap(float (&gap)[2], std::uint32_t k, std::uint32_t v,
                                               const LaneNorm& norm) {
  gap[0] = norm.bias[0] - low_bf16(v) + low_bf16(k);
  gap[1] = norm.bias[1] - high_bf16(v) + high_bf16(k);
}
/// All means come from sums of one pass, since u = gamma^2 n + gamma gap is linear in z. `square` is the mean of gamma^2.
__device__ __forceinline__ InnerLossRow inner_loss_row(const float (&z)[2], const float (&gap)[2],
                                                       const LaneNorm& norm, float square) {
  float mean[6] = {};
  for (int i = 0; i < 2; ++i) {
    const float slope = norm.weight[i] * norm.weight[i];
    const float offset = norm.weight[i] * gap[i];
    mean[0] += z[i];
    mean[1] += z[i] * z[i];
    mean[2] += slope * z[i];
    mean[3] += slope * z[i] * z[i];
    mean[4] += offset * z[i];
    mean[5] += offset;
  }
  mean_over_features(mean);
  InnerLossRow row;
  const float mu = mean[0];
  row.rstd = rsqrtf(mean[1] - mu * mu + kEpsilon);
  row.mean_u = (mean[2] - mu * square) * row.rstd + mean[5];
  row.mean_un =
      ((mean[3] - 2.0F * mu * mean[2] + mu * mu * square) * row.rstd + (mean[4] - mu * mean[5])) *
      row.rstd;
  for (int i = 0; i < 2; ++i) {
    row.n[i] = (z[i] - mu) * row.rstd;
    row.e[i] = norm.weight[i] * row.n[i] + gap[i];
  }
  return row;
}

}  // namespace ttt::kernels::cuda::mlp
