#pragma once
// The functions of kernels/activation.h with their slopes, once for all devices.
//
//   value = f(x), slope = f'(x)
//
// Dims: none.
// Numerics: T, with the elementary functions of `Math`: static sigmoid(x), exponential(x), erfc(x).
// Errors: kInternal for an unknown activation.
// Source: kernels/activation.h.

#include <numbers>

#include "core/base/error.h"
#include "kernels/activation.h"

#ifdef __CUDACC__
#define TTT_ANY_DEVICE __device__ __forceinline__
#else
#define TTT_ANY_DEVICE inline
#endif

namespace ttt::kernels {

/// A function's value and derivative at one point.
template <typename T>
struct Jet {
  T value;
  T slope;
};

template <typename Math>
struct Silu {
  template <typename T>
  TTT_ANY_DEVICE static Jet<T> at(T x) {
    const T s = Math::sigmoid(x);
    return {x * s, s + x * s * (T{1} - s)};
  }
};

// (1 + tanh(u)) / 2 = sigmoid(2u), which keeps its relative accuracy where tanh(u) is near -1.
template <typename Math>
struct GeluTanh {
  template <typename T>
  TTT_ANY_DEVICE static Jet<T> at(T x) {
    constexpr T kTwoRoot = static_cast<T>(1.5957691216057307117597842397375);  // 2 sqrt(2/pi)
    constexpr T kCubic = static_cast<T>(0.044715);
    const T s = Math::sigmoid(kTwoRoot * (x + kCubic * x * x * x));
    return {x * s, s + x * s * (T{1} - s) * (kTwoRoot * (T{1} + T{3} * kCubic * x * x))};
  }
};

template <typename Math>
struct GeluErf {
  template <typename T>
  TTT_ANY_DEVICE static Jet<T> at(T x) {
    constexpr T kMinusRootHalf = static_cast<T>(-1.0 / std::numbers::sqrt2);
    constexpr T kNormal = static_cast<T>(std::numbers::inv_sqrtpi / std::numbers::sqrt2);
    const T cumulative = T{0.5} * Math::erfc(x * kMinusRootHalf);
    const T density = Math::exponential(T{-0.5} * x * x) * kNormal;
    return {x * cumulative, cumulative + x * density};
  }
};

/// f(function), whose `at` gives value and slope.
template <typename Math, typename F>
void visit_activation(Activation kind, F&& f) {
  switch (kind) {
    case Activation::kSilu:
      return f(Silu<Math>{});
    case Activation::kGeluTanh:
      return f(GeluTanh<Math>{});
    case Activation::kGeluErf:
      return f(GeluErf<Math>{});
  }
  TTT_CHECK(false, "unknown activation {}", static_cast<int>(kind));
}

#undef TTT_ANY_DEVICE

}  // namespace ttt::kernels
