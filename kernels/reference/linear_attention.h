#pragma once
// The definition of kernels/linear_attention.h: plain loops over pairs of tokens, starting from a zero state.

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

#include "kernels/linear_attention.h"

namespace ttt::kernels::reference {

template <typename T>
T feature(FeatureMap map, const T& x) {
  if (map == FeatureMap::kIdentity) return x;
  return std::real(x) > 0 ? x + T(1) : std::exp(x);
}

template <typename T>
T feature_derivative(FeatureMap map, const T& x) {
  return map == FeatureMap::kIdentity || std::real(x) > 0 ? T(1) : std::exp(x);
}

/// Tensors are [B, T, H, F].
struct LinearAttentionSizes {
  std::int64_t batch, tokens, heads, dim;

  [[nodiscard]] std::int64_t offset(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return ((b * tokens + t) * heads + h) * dim;
  }
};

/// phi(q_t) . phi(k_s)
template <typename T>
T linear_attention_score(const T* q, const T* k, std::int64_t dim, FeatureMap map) {
  T sum{};
  for (std::int64_t f = 0; f < dim; ++f) sum += feature(map, q[f]) * feature(map, k[f]);
  return sum;
}

template <typename T>
void linear_attention_forward(const T* q, const T* k, const T* v, T* out,
                              const LinearAttentionSizes& n,
                              const LinearAttentionOptions& options) {
  for (std::int64_t b = 0; b < n.batch; ++b) {
    for (std::int64_t h = 0; h < n.heads; ++h) {
      for (std::int64_t t = 0; t < n.tokens; ++t) {
        T* row = out + n.offset(b, t, h);
        for (std::int64_t f = 0; f < n.dim; ++f) row[f] = T{};
        T normalizer{};
        for (std::int64_t s = 0; s <= t; ++s) {
          const T score = linear_attention_score(q + n.offset(b, t, h), k + n.offset(b, s, h),
                                                 n.dim, options.feature_map);
          normalizer += score;
          for (std::int64_t f = 0; f < n.dim; ++f) row[f] += score * v[n.offset(b, s, h) + f];
        }
        if (!options.normalize) continue;
        for (std::int64_t f = 0; f < n.dim; ++f) row[f] /= normalizer;
      }
    }
  }
}

/// d_q, d_k and d_v are added to.
template <typename T>
void linear_attention_backward(const T* q, const T* k, const T* v, const T* d_out, T* d_q, T* d_k,
                               T* d_v, const LinearAttentionSizes& n,
                               const LinearAttentionOptions& options) {
  const FeatureMap map = options.feature_map;
  std::vector<T> out(static_cast<std::size_t>(n.batch * n.tokens * n.heads * n.dim));
  linear_attention_forward(q, k, v, out.data(), n, options);
  for (std::int64_t b = 0; b < n.batch; ++b) {
    for (std::int64_t h = 0; h < n.heads; ++h) {
      for (std::int64_t t = 0; t < n.tokens; ++t) {
        const std::int64_t row = n.offset(b, t, h);
        T normalizer(options.normalize ? 0 : 1);
        for (std::int64_t s = 0; s <= t && options.normalize; ++s) {
          normalizer += linear_attention_score(q + row, k + n.offset(b, s, h), n.dim, map);
        }
        for (std::int64_t s = 0; s <= t; ++s) {
          const std::int64_t key = n.offset(b, s, h);
          const T score = linear_attention_score(q + row, k + key, n.dim, map);
          T d_score{};
          for (std::int64_t f = 0; f < n.dim; ++f) {
            const T value = options.normalize ? v[key + f] - out[row + f] : v[key + f];
            d_score += d_out[row + f] * value / normalizer;
            d_v[key + f] += score * d_out[row + f] / normalizer;
          }
          for (std::int64_t f = 0; f < n.dim; ++f) {
            d_q[row + f] +=
                d_score * feature(map, k[key + f]) * feature_derivative(map, q[row + f]);
            d_k[key + f] +=
                d_score * feature(map, q[row + f]) * feature_derivative(map, k[key + f]);
          }
        }
      }
    }
  }
}

}  // namespace ttt::kernels::reference
