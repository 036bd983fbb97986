#pragma once
// Activation functions with their slopes, once for all devices.
//
//   value = f(x), slope = f'(x)
//
// Dims: none.
// Numerics: T, with the elementary functions of `Math`: static sigmoid(x).
// Errors: none.
// Source: arXiv:1606.08415 (GELU in its tanh form), arXiv:2002.05202 (SiLU).

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

#undef TTT_ANY_DEVICE

}  // namespace ttt::kernels
