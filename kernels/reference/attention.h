#pragma once
// The definition of kernels/attention.h: plain loops. Tensors are dense in the order of the contract.

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

#include "kernels/reference/head_cross_entropy.h"

namespace ttt::kernels::reference {

struct AttentionSizes {
  std::int64_t batch, queries, keys, heads, key_heads, dim;

  [[nodiscard]] std::int64_t query_offset(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return ((b * queries + t) * heads + h) * dim;
  }
  /// Of key s as query head h sees it.
  [[nodiscard]] std::int64_t key_offset(std::int64_t b, std::int64_t s, std::int64_t h) const {
    return ((b * keys + s) * key_heads + h * key_heads / heads) * dim;
  }
  /// Keys that query t sees.
  [[nodiscard]] std::int64_t visible(std::int64_t t) const { return t + keys - queries + 1; }
};

/// p [visible] and the return value: softmax and logsumexp of the scores of one query.
template <typename T>
T attention_probabilities(const T* q, const T* k, std::vector<T>& p, const AttentionSizes& n,
                          std::int64_t b, std::int64_t t, std::int64_t h, double scale) {
  std::vector<T> scores(static_cast<std::size_t>(n.visible(t)));
  p.resize(scores.size());
  for (std::int64_t s = 0; s < n.visible(t); ++s) {
    T dot{};
    for (std::int64_t f = 0; f < n.dim; ++f) {
      dot += q[n.query_offset(b, t, h) + f] * k[n.key_offset(b, s, h) + f];
    }
    scores[s] = T(scale) * dot;
  }
  return softmax(scores.data(), p.data(), n.visible(t));
}

/// out [B, T, H, F], lse [B, H, T].
template <typename T>
void attention_forward(const T* q, const T* k, const T* v, T* out, T* lse, const AttentionSizes& n,
                       double scale) {
  std::vector<T> p;
  for (std::int64_t b = 0; b < n.batch; ++b) {
    for (std::int64_t h = 0; h < n.heads; ++h) {
      for (std::int64_t t = 0; t < n.queries; ++t) {
        lse[(b * n.heads + h) * n.queries + t] =
            attention_probabilities(q, k, p, n, b, t, h, scale);
        T* row = out + n.query_offset(b, t, h);
        for (std::int64_t f = 0; f < n.dim; ++f) row[f] = T{};
        for (std::int64_t s = 0; s < n.visible(t); ++s) {
          for (std::int64_t f = 0; f < n.dim; ++f) row[f] += p[s] * v[n.key_offset(b, s, h) + f];
        }
      }
    }
  }
}

/// Adds to d_q [B, T, H, F] and to d_k, d_v [B, S, G, F].
template <typename T>
void attention_backward(const T* q, const T* k, const T* v, const T* d_out, T* d_q, T* d_k, T* d_v,
                        const AttentionSizes& n, double scale) {
  std::vector<T> p;
  for (std::int64_t b = 0; b < n.batch; ++b) {
    for (std::int64_t h = 0; h < n.heads; ++h) {
      for (std::int64_t t = 0; t < n.queries; ++t) {
        attention_probabilities(q, k, p, n, b, t, h, scale);
        const std::int64_t row = n.query_offset(b, t, h);
        std::vector<T> d_p(p.size());
        T delta{};
        for (std::int64_t s = 0; s < n.visible(t); ++s) {
          for (std::int64_t f = 0; f < n.dim; ++f) {
            d_p[s] += d_out[row + f] * v[n.key_offset(b, s, h) + f];
          }
          delta += p[s] * d_p[s];
        }
        for (std::int64_t s = 0; s < n.visible(t); ++s) {
          const T d_score = T(scale) * p[s] * (d_p[s] - delta);
          const std::int64_t key = n.key_offset(b, s, h);
          for (std::int64_t f = 0; f < n.dim; ++f) {
            d_q[row + f] += d_score * k[key + f];
            d_k[key + f] += d_score * q[row + f];
            d_v[key + f] += p[s] * d_out[row + f];
          }
        }
      }
    }
  }
}

}  // namespace ttt::kernels::reference
