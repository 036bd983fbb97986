#pragma once
// Elementary functions that the compiler can vectorise: straight-line float code. Double uses the C library.

#include <bit>
#include <cmath>
#include <cstdint>

namespace ttt::kernels {

/// Within 2 ulp; overflows to infinity, underflows through the subnormals to zero, keeps NaN.
inline float exponential(float x) {
  // exp(x) = 2^n exp(r), |r| <= ln(2)/2. Beyond the clamps the result is infinity or zero anyway.
  x = x > 89.0F ? 89.0F : x;
  x = x < -104.0F ? -104.0F : x;
  constexpr float kRound = 0x1.8p23F;  // adding it leaves the nearest integer in the low bits
  const float shifted = x * 1.44269504F + kRound;
  const std::int32_t n = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kRound);
  const float whole = shifted - kRound;
  // ln(2) in two parts (Cody and Waite); the first has 10 bits, so whole * 0.693359375 is exact.
  const float r = (x - whole * 0.693359375F) - whole * -2.12194440e-4F;
  // Minimax polynomial of Cephes' expf.
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  // n runs from -150 to 128, one factor 2^n would leave the exponent's range.
  const std::int32_t half = n >> 1;
  const float low = std::bit_cast<float>((half + 127) << 23);
  const float high = std::bit_cast<float>((n - half + 127) << 23);
  return p * low * high;
}
inline double exponential(double x) { return std::exp(x); }

template <typename T>
T sigmoid(T x) {
  return T{1} / (T{1} + exponential(-x));
}

/// The elementary functions of kernels/activation_jets.h.
struct CpuMath {
  template <typename T>
  static T sigmoid(T x) {
    return kernels::sigmoid(x);
  }
};

}  // namespace ttt::kernels
