#pragma once
// The LayerNorm of the TTT inner loss on rows in padded scratch: G of the loss, the output, and their backward.
//
//   J_{n,s}(u) = (u - mean u - n mean(u * n)) / s;  G = J(e), e = (gamma * n + beta - target) * gamma
//
// The sums of a row are taken before anything is divided, in as few passes over the row as the data allow.
// Source: docs/numerics.md, "TTT".

#include <cmath>
#include <cstdint>

#include "kernels/cpu/ttt_matrix.h"

namespace ttt::kernels::ttt_cpu {

/// gamma, beta and the mask of valid columns, padded with zeros to `columns`.
template <typename T>
struct Norm {
  bool enabled = true;
  std::int64_t columns = 0;  // F
  T* weight = nullptr;
  T* bias = nullptr;
  T* mask = nullptr;  // 1 in valid columns
};

/// Per-pair sums of dL/d gamma and dL/d beta.
template <typename T>
struct NormSums {
  T* d_weight = nullptr;
  T* d_bias = nullptr;
};

template <typename T>
struct RowStatistics {
  T mean, rstd;
};

template <typename T>
RowStatistics<T> statistics(const Norm<T>& norm, const T* z) {
  const T scale = T(1) / static_cast<T>(norm.columns);
  Vec<T> total{};
  for (std::int64_t j = 0; j < norm.columns; j += kLanes<T>) total += simd::load(z + j);
  const T mean = simd::sum<T>(total) * scale;
  const Vec<T> negative_mean = simd::splat(-mean);
  Vec<T> squares{};
  for (std::int64_t j = 0; j < norm.columns; j += kLanes<T>) {
    const Vec<T> x = simd::fma(negative_mean, simd::load(norm.mask + j), simd::load(z + j));
    squares = simd::fma(x, x, squares);
  }
  return {mean, T(1) / std::sqrt(simd::sum<T>(squares) * scale + T(1e-6))};
}

/// n = (z - mean) rstd at column j.
template <typename T>
[[gnu::always_inline]] inline Vec<T> normalized(const Norm<T>& norm, RowStatistics<T> s, const T* z,
                                                std::int64_t j) {
  return simd::fma(simd::splat(-s.mean), simd::load(norm.mask + j), simd::load(z + j)) * s.rstd;
}

/// g = dL/dz of 1/2 |LN(z) - target|^2; keeps n and rstd for the backward. g may alias z.
template <typename T>
void loss_gradient(const Norm<T>& norm, std::int64_t rows, Rows<T> z, Rows<T> target, Rows<T> n,
                   T* rstd, Rows<T> g) {
  const T scale = T(1) / static_cast<T>(norm.columns);
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* z_row = z.row(i);
    const T* target_row = target.row(i);
    T* n_row = n.row(i);
    T* g_row = g.row(i);
    if (!norm.enabled) {
      for (std::int64_t j = 0; j < norm.columns; j += kLanes<T>) {
        simd::store(g_row + j, simd::load(z_row + j) - simd::load(target_row + j));
      }
      continue;
    }
    const RowStatistics<T> s = statistics(norm, z_row);
    rstd[i] = s.rstd;
    Vec<T> sum_e{};
    Vec<T> sum_e_n{};
    for (std::int64_t j = 0; j < norm.columns; j += kLanes<T>) {
      const Vec<T> weight = simd::load(norm.weight + j);
      const Vec<T> x = normalized(norm, s, z_row, j);
      const Vec<T> y = simd::fma(weight, x, simd::load(norm.bias + j));
      const Vec<T> e = (y - simd::load(target_row + j)) * weight;
      simd::store(n_row + j, x);
      simd::store(g_row + j, e);
      sum_e += e;
      sum_e_n = simd::fma(e, x, sum_e_n);
    }
    const Vec<T> negative_mean = simd::splat(-simd::sum<T>(sum_e) * scale);
    const Vec<T> negative_mean_n = simd::splat(-simd::sum<T>(sum_e_n) * scale);
    for (std::int64_t j = 0; j < norm.columns; j += kLanes<T>) {
      Vec<T> e = simd::fma(negative_mean, simd::load(norm.mask + j), simd::load(g_row + j));
      e = simd::fma(negative_mean_n, simd::load(n_row + j), e);
      simd::store(g_row + j, e * s.rstd);
    }
  }
}

/// y = x + LN(z); without the norm y = z. y may alias z.
template <typename T>
void output(const Norm<T>& norm, std::int64_t rows, Rows<T> z, Rows<T> x, Rows<T> y) {
  for (std::int64_t i = 0; i < rows; ++i) {
    const RowStatistics<T> s = norm.enabled ? statistics(norm, z.row(i)) : RowStatistics<T>{};
    for (std::int64_t j = 0; j < norm.columns; j += kLanes<T>) {
      Vec<T> value = simd::load(z.row(i) + j);
      if (norm.enabled) {
        value = simd::fma(simd::load(norm.weight + j), normalized(norm, s, z.row(i), j),
                          simd::load(norm.bias + j)) +
                simd::load(x.row(i) + j);
      }
      simd::store(y.row(i) + j, value);
    }
  }
}

/// d_z of y = LN(z), adding to the sums; without the norm d_z = d_y. d_z may alias z.
template <typename T>
void output_backward(const Norm<T>& norm, std::int64_t rows, Rows<T> z, Rows<T> d_y, Rows<T> d_z,
                     const NormSums<T>& sums) {
  const T scale = T(1) / static_cast<T>(norm.columns);
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* d_y_row = d_y.row(i);
    T* d_z_row = d_z.row(i);
    if (!norm.enabled) {
      for (std::int64_t j = 0; j < norm.columns; j += kLanes<T>) {
        simd::store(d_z_row + j, simd::load(d_y_row + j));
      }
      continue;
    }
    const RowStatistics<T> s = statistics(norm, z.row(i));
    Vec<T> sum_h{};
    Vec<T> sum_h_n{};
    for (std::int64_t j = 0; j < norm.columns; j += kLanes<T>) {
      const Vec<T> n = normalized(norm, s, z.row(i), j);
      const Vec<T> d = simd::load(d_y_row + j);
      const Vec<T> h = d * simd::load(norm.weight + j);
      simd::store(sums.d_weight + j, simd::fma(d, n, simd::load(sums.d_weight + j)));
      simd::store(sums.d_bias + j, d + simd::load(sums.d_bias + j));
      sum_h += h;
      sum_h_n = simd::fma(h, n, sum_h_n);
    }
    const Vec<T> negative_mean = simd::splat(-simd::sum<T>(sum_h) * scale);
    const Vec<T> negative_mean_n = simd::splat(-simd::sum<T>(sum_h_n) * scale);
    for (std::int64_t j = 0; j < norm.columns; j += kLanes<T>) {
      const Vec<T> n = normalized(norm, s, z.row(i), j);
      Vec<T> h = simd::load(d_y_row + j) * simd::load(norm.weight + j);
      h = simd::fma(negative_mean, simd::load(norm.mask + j), h);
      simd::store(d_z_row + j, simd::fma(negative_mean_n, n, h) * s.rstd);
    }
  }
}

/// What loss_gradient left for its backward.
template <typename T>
struct LossGradientSaved {
  Rows<T> n, g, target;
  const T* rstd = nullptr;
};

/// From u = dL/dG: d_z and d_target, adding to the sums. d_z may alias u.
template <typename T>
void loss_gradient_backward(const Norm<T>& norm, std::int64_t rows,
                            const LossGradientSaved<T>& saved, Rows<T> u, Rows<T> d_z,
                            Rows<T> d_target, const NormSums<T>& sums) {
  const T scale = T(1) / static_cast<T>(norm.columns);
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* u_row = u.row(i);
    T* d_z_row = d_z.row(i);
    T* d_target_row = d_target.row(i);
    if (!norm.enabled) {
      for (std::int64_t j = 0; j < norm.columns; j += kLanes<T>) {
        const Vec<T> d = simd::load(u_row + j);
        simd::store(d_z_row + j, d);
        simd::store(d_target_row + j, -d);
      }
      continue;
    }
    const T* n_row = saved.n.row(i);
    const T* g_row = saved.g.row(i);
    const T rstd = saved.rstd[i];
    Vec<T> sum_u{};
    Vec<T> sum_u_n{};
    Vec<T> sum_e_n{};
    Vec<T> sum_u_g{};
    const auto residual = [&](std::int64_t j) {
      return simd::fma(simd::load(norm.weight + j), simd::load(n_row + j),
                       simd::load(norm.bias + j)) -
             simd::load(saved.target.row(i) + j);
    };
    for (std::int64_t j = 0; j < norm.columns; j += kLanes<T>) {
      const Vec<T> d = simd::load(u_row + j);
      const Vec<T> n = simd::load(n_row + j);
      sum_u += d;
      sum_u_n = simd::fma(d, n, sum_u_n);
      sum_e_n = simd::fma(residual(j) * simd::load(norm.weight + j), n, sum_e_n);
      sum_u_g = simd::fma(d, simd::load(g_row + j), sum_u_g);
    }
    const T mean_u_n = simd::sum<T>(sum_u_n) * scale;
    const Vec<T> negative_mean_u = simd::splat(-simd::sum<T>(sum_u) * scale);
    const Vec<T> u_factor = simd::splat(-simd::sum<T>(sum_e_n) * scale * rstd);
    const Vec<T> e_factor = simd::splat(-mean_u_n * rstd);
    Vec<T> sum_d_n{};
    Vec<T> sum_d_n_n{};
    for (std::int64_t j = 0; j < norm.columns; j += kLanes<T>) {
      const Vec<T> weight = simd::load(norm.weight + j);
      const Vec<T> d = simd::load(u_row + j);
      const Vec<T> n = simd::load(n_row + j);
      const Vec<T> rho = residual(j);
      const Vec<T> d_e = simd::fma(simd::splat(-mean_u_n), n,
                                   simd::fma(negative_mean_u, simd::load(norm.mask + j), d)) *
                         rstd;
      const Vec<T> d_rho = d_e * weight;
      simd::store(d_target_row + j, -d_rho);
      simd::store(sums.d_bias + j, d_rho + simd::load(sums.d_bias + j));
      simd::store(sums.d_weight + j,
                  simd::fma(d_e, rho, simd::fma(d_rho, n, simd::load(sums.d_weight + j))));
      const Vec<T> d_n = simd::fma(u_factor, d, simd::fma(e_factor, rho * weight, d_rho * weight));
      simd::store(d_z_row + j, d_n);
      sum_d_n += d_n;
      sum_d_n_n = simd::fma(d_n, n, sum_d_n_n);
    }
    // The last term is the explicit 1/s of G: -n (u . g) / (s F).
    const Vec<T> negative_mean = simd::splat(-simd::sum<T>(sum_d_n) * scale);
    const Vec<T> n_factor = simd::splat(-(simd::sum<T>(sum_d_n_n) + simd::sum<T>(sum_u_g)) * scale);
    for (std::int64_t j = 0; j < norm.columns; j += kLanes<T>) {
      const Vec<T> d_n =
          simd::fma(negative_mean, simd::load(norm.mask + j), simd::load(d_z_row + j));
      simd::store(d_z_row + j, simd::fma(n_factor, simd::load(n_row + j), d_n) * rstd);
    }
  }
}

}  // namespace ttt::kernels::ttt_cpu
