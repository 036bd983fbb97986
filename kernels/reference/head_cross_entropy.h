#pragma once
// The definition of kernels/head_cross_entropy.h: plain loops. Matrices are row-major.

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace ttt::kernels::reference {

/// p [V] = softmax(z [V]); returns logsumexp(z). T may be complex: the shift is by the largest real part.
template <typename T>
T softmax(const T* z, T* p, std::int64_t count) {
  double largest = std::real(z[0]);
  for (std::int64_t j = 1; j < count; ++j) {
    if (std::real(z[j]) > largest) largest = std::real(z[j]);
  }
  T sum{};
  for (std::int64_t j = 0; j < count; ++j) {
    p[j] = std::exp(z[j] - T(largest));
    sum += p[j];
  }
  for (std::int64_t j = 0; j < count; ++j) p[j] /= sum;
  return T(largest) + std::log(sum);
}

/// nll [N] of x [N, C], w [V, C]; 0 where the target is outside the vocabulary.
template <typename T>
void head_cross_entropy_forward(const T* x, const T* w, const std::int64_t* targets, T* nll,
                                std::int64_t tokens, std::int64_t channels, std::int64_t vocab) {
  std::vector<T> z(static_cast<std::size_t>(vocab));
  std::vector<T> p(z.size());
  for (std::int64_t n = 0; n < tokens; ++n) {
    for (std::int64_t o = 0; o < vocab; ++o) {
      z[o] = T{};
      for (std::int64_t c = 0; c < channels; ++c) z[o] += x[n * channels + c] * w[o * channels + c];
    }
    const T lse = softmax(z.data(), p.data(), vocab);
    nll[n] = targets[n] >= 0 && targets[n] < vocab ? lse - z[targets[n]] : T{};
  }
}

/// d_x [N, C] and d_w [V, C] += gradients of sum_n token_weight[n] nll[n].
template <typename T>
void head_cross_entropy_backward(const T* x, const T* w, const std::int64_t* targets,
                                 const double* token_weight, T* d_x, T* d_w, std::int64_t tokens,
                                 std::int64_t channels, std::int64_t vocab) {
  std::vector<T> z(static_cast<std::size_t>(vocab));
  std::vector<T> p(z.size());
  for (std::int64_t n = 0; n < tokens; ++n) {
    if (token_weight[n] == 0) continue;
    for (std::int64_t o = 0; o < vocab; ++o) {
      z[o] = T{};
      for (std::int64_t c = 0; c < channels; ++c) z[o] += x[n * channels + c] * w[o * channels + c];
    }
    softmax(z.data(), p.data(), vocab);
    for (std::int64_t o = 0; o < vocab; ++o) {
      const T d_z = T(token_weight[n]) * (p[o] - T(o == targets[n] ? 1 : 0));
      for (std::int64_t c = 0; c < channels; ++c) {
        d_x[n * channels + c] += d_z * w[o * channels + c];
        d_w[o * channels + c] += d_z * x[n * channels + c];
      }
    }
  }
}

}  // namespace ttt::kernels::reference
