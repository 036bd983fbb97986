#pragma once
// Fixed-width vectors of the CPU kernels, through GCC's vector extensions.
//
// Vec<T> is as wide as the target's registers; rows of scratch are padded to kLanes<T> elements and aligned to
// kVectorBytes, so that loops have no tails. Contractions are explicit (`fma`): the build forbids implicit ones, and
// the same binary gives the same bits.

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

namespace ttt::kernels::simd {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct VecOf {
  using type [[gnu::vector_size(kVectorBytes)]] = T;
};
template <typename T>
using Vec = typename VecOf<T>::type;
template <typename T>
using Lanes = Vec<std::conditional_t<sizeof(T) == 8, std::int64_t, std::int32_t>>;

template <typename T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

/// The smallest multiple of kLanes that holds `count` elements.
template <typename T>
constexpr std::int64_t padded(std::int64_t count) {
  return (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <typename T>
[[gnu::always_inline]] inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}
template <typename T>
[[gnu::always_inline]] inline Vec<T> load_unaligned(const T* p) {
  Vec<T> x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}
template <typename T>
[[gnu::always_inline]] inline void store(T* p, Vec<T> x) {
  *reinterpret_cast<Vec<T>*>(p) = x;
}
template <typename T>
[[gnu::always_inline]] inline Vec<T> splat(T x) {
  return x - Vec<T>{};
}

/// a * b + c with one rounding where the target has it.
[[gnu::always_inline]] inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
[[gnu::always_inline]] inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

/// Lane i is lane selector[i] of (a, b), counted through both.
template <typename T>
[[gnu::always_inline]] inline Vec<T> shuffle(Vec<T> a, Vec<T> b, Lanes<T> selector) {
#if defined(__clang__)  // has no shuffle by a vector
  Vec<T> result{};
  for (int i = 0; i < kLanes<T>; ++i) {
    const auto from = static_cast<int>(selector[i]);
    result[i] = from < kLanes<T> ? a[from] : b[from - kLanes<T>];
  }
  return result;
#else
  return __builtin_shuffle(a, b, selector);
#endif
}

/// The sum of the lanes, pairwise.
template <typename T>
[[gnu::always_inline]] inline T sum(Vec<T> x) {
#pragma GCC unroll 4
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    Lanes<T> partner{};
    for (int i = 0; i < kLanes<T>; ++i) partner[i] = i ^ width;
    x += shuffle<T>(x, x, partner);
  }
  return x[0];
}

/// Selectors of one step of the transposition network: lanes with bit `step` change places between two rows.
template <typename T>
struct Exchange {
  Lanes<T> low{}, high{};

  [[gnu::always_inline]] explicit Exchange(int step) {
    for (int i = 0; i < kLanes<T>; ++i) {
      const bool upper = (i & step) != 0;
      low[i] = upper ? kLanes<T> + i - step : i;
      high[i] = upper ? kLanes<T> + i : i + step;
    }
  }
};

/// Rows and columns of a kLanes x kLanes block exchanged.
template <typename T>
[[gnu::always_inline]] inline void transpose_block(Vec<T> (&rows)[kLanes<T>]) {
#pragma GCC unroll 8
  for (int step = kLanes<T> / 2; step > 0; step /= 2) {
    const Exchange<T> exchange(step);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if ((i & step) != 0) continue;
      const Vec<T> a = rows[i];
      const Vec<T> b = rows[i + step];
      rows[i] = shuffle<T>(a, b, exchange.low);
      rows[i + step] = shuffle<T>(a, b, exchange.high);
    }
  }
}

/// Lane i is the sum of the lanes of rows[i]: the transposition network with sums. Overwrites rows.
template <typename T>
[[gnu::always_inline]] inline Vec<T> sums(Vec<T> (&rows)[kLanes<T>]) {
#pragma GCC unroll 8
  for (int step = kLanes<T> / 2; step > 0; step /= 2) {
    const Exchange<T> exchange(step);
#pragma GCC unroll 16
    for (int i = 0; i < step; ++i) {
      const Vec<T> a = rows[i];
      const Vec<T> b = rows[i + step];
      rows[i] = shuffle<T>(a, b, exchange.low) + shuffle<T>(a, b, exchange.high);
    }
  }
  return rows[0];
}

[[gnu::always_inline]] inline Vec<float> sqrt(Vec<float> x) {
#if defined(__AVX512F__)
  return _mm512_maskz_sqrt_ps(0xffff, x);
#else
  for (int i = 0; i < kLanes<float>; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}
[[gnu::always_inline]] inline Vec<double> sqrt(Vec<double> x) {
#if defined(__AVX512F__)
  return _mm512_maskz_sqrt_pd(0xff, x);
#else
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

/// e^x; float: relative error below 2e-7, arguments clamped to where the result is a normal number.
[[gnu::always_inline]] inline Vec<float> exp(Vec<float> x) {
  x = x > 88.0F ? splat(88.0F) : x;
  x = x < -87.0F ? splat(-87.0F) : x;
  // x = n ln 2 + r, |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds n to an integer in the low mantissa bits.
  const Vec<float> magic = splat(12582912.0F);
  const Vec<float> shifted = fma(x, splat(1.44269504F), magic);
  const Vec<float> n = shifted - magic;
  Vec<float> r = fma(n, splat(-0.693359375F), x);
  r = fma(n, splat(2.12194440e-4F), r);
  Vec<float> p = splat(1.9875691500e-4F);  // Cephes expf
  p = fma(p, r, splat(1.3981999507e-3F));
  p = fma(p, r, splat(8.3334519073e-3F));
  p = fma(p, r, splat(4.1665795894e-2F));
  p = fma(p, r, splat(1.6666665459e-1F));
  p = fma(p, r, splat(5.0000001201e-1F));
  p = fma(p, r * r, r) + 1.0F;
  const Lanes<float> exponent =
      (reinterpret_cast<Lanes<float>>(shifted) - reinterpret_cast<Lanes<float>>(magic)) << 23;
  return reinterpret_cast<Vec<float>>(reinterpret_cast<Lanes<float>>(p) + exponent);
}
[[gnu::always_inline]] inline Vec<double> exp(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace ttt::kernels::simd
