#pragma once
// gelu_tanh in fp32, exact to rounding; the fused training kernels have their own (kernels/cuda/ttt_mlp_rows.h).

#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda {

/// gelu_tanh and its derivatives. With s = sigmoid(2 w), w = sqrt(2/pi) (x + 0.044715 x^3): phi = x s, which keeps the
/// relative accuracy of s in the left tail.
struct Gelu {
  float value, slope, bend;

  __device__ static Gelu at(float x) {
    constexpr float kScale = 0.79788456080286536F;  // sqrt(2 / pi)
    constexpr float kCubic = 0.044715F;
    const float w = kScale * (x + kCubic * x * x * x);
    const float w1 = kScale * (1.0F + 3.0F * kCubic * x * x);
    const float w2 = 6.0F * kScale * kCubic * x;
    const float s = 1.0F / (1.0F + expf(-2.0F * w));
    const float s1 = 2.0F * s * (1.0F - s);  // tanh' / 2
    const float t = 2.0F * s - 1.0F;
    return {x * s, s + x * w1 * s1, s1 * (2.0F * w1 + x * (w2 - 2.0F * t * w1 * w1))};
  }
};

}  // namespace ttt::kernels::cuda
