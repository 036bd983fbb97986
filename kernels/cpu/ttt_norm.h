#pragma once
// The LayerNorm of the TTT inner loss on rows in padded scratch: G of the loss, the output, and their backward.
//
//   J_{n,s}(u) = (u - mean u - n mean(u * n)) / s;  G = J(e), e = (gamma * n + beta - target) * gamma
//
// The sums of a row are taken before anything is divided, in as few passes over the row as the data allow.
// Source: docs/numerics.md, "TTT".

#include <algorithm>
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

/// One value for each of up to kLanes<T> rows, which are treated together: their sums are independent of one another,
/// and the lanes of all rows are added in one go.
template <typename T>
struct Panel {
  alignas(simd::kVectorBytes) T values[kLanes<T>];

  // NOLINTNEXTLINE(google-explicit-constructor): a vector in memory
  Panel(Vec<T> x) { simd::store(values, x); }
  [[nodiscard]] Vec<T> vector() const { return simd::load(values); }
  T operator[](std::int64_t i) const { return values[i]; }
};

/// f(first row, number of rows) panel by panel.
template <typename T, typename F>
[[gnu::always_inline]] inline void for_each_panel(std::int64_t rows, F&& f) {
  for (std::int64_t first = 0; first < rows; first += kLanes<T>) {
    f(first, std::min<std::int64_t>(kLanes<T>, rows - first));
  }
}

/// f(i, j) over the vectors of `count` rows; the published width of four vectors gets a loop of its own.
template <typename T, typename F>
[[gnu::always_inline]] inline void for_each_column(std::int64_t columns, F&& f) {
  if (columns == 4 * kLanes<T>) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) f(v * kLanes<T>);
  } else {
    for (std::int64_t j = 0; j < columns; j += kLanes<T>) f(j);
  }
}

/// Row by row the sums over columns of what f(i, j, sums) adds to sums[0..kSums).
template <typename T, int kSums, typename F>
[[gnu::always_inline]] inline void row_sums(std::int64_t count, std::int64_t columns,
                                            Vec<T> (&result)[kSums], F&& f) {
  Vec<T> parts[kSums][kLanes<T>] = {};
  for (std::int64_t i = 0; i < count; ++i) {
    Vec<T> sums[kSums] = {};
    for_each_column<T>(columns, [&](std::int64_t j) { f(i, j, sums); });
    for (int s = 0; s < kSums; ++s) parts[s][i] = sums[s];
  }
  for (int s = 0; s < kSums; ++s) result[s] = simd::sums<T>(parts[s]);
}

template <typename T>
struct Statistics {
  Panel<T> negative_mean, rstd;

  /// n = (z - mean) rstd of row i at column j.
  [[nodiscard, gnu::always_inline]] Vec<T> normalized(const Norm<T>& norm, Rows<T> z,
                                                      std::int64_t i, std::int64_t j) const {
    return simd::fma(simd::splat(negative_mean[i]), simd::load(norm.mask + j),
                     simd::load(z.row(i) + j)) *
           rstd[i];
  }
};

template <typename T>
Statistics<T> statistics(const Norm<T>& norm, std::int64_t count, Rows<T> z) {
  const T scale = T(1) / static_cast<T>(norm.columns);
  Vec<T> total[1];
  row_sums<T>(count, norm.columns, total, [&](std::int64_t i, std::int64_t j, Vec<T>* sums) {
    sums[0] += simd::load(z.row(i) + j);
  });
  const Panel<T> negative_mean(total[0] * -scale);
  Vec<T> squares[1];
  row_sums<T>(count, norm.columns, squares, [&](std::int64_t i, std::int64_t j, Vec<T>* sums) {
    const Vec<T> x = simd::fma(simd::splat(negative_mean[i]), simd::load(norm.mask + j),
                               simd::load(z.row(i) + j));
    sums[0] = simd::fma(x, x, sums[0]);
  });
  return {negative_mean, T(1) / simd::sqrt(squares[0] * scale + T(1e-6))};
}

/// g = dL/dz of 1/2 |LN(z) - target|^2; keeps n and rstd for the backward.
template <typename T>
void loss_gradient(const Norm<T>& norm, std::int64_t rows, Rows<T> all_z, Rows<T> all_target,
                   Rows<T> all_n, T* rstd, Rows<T> all_g) {
  if (!norm.enabled) {
    for_each_vector<T>(rows, norm.columns, [&](std::int64_t i, std::int64_t j) {
      simd::store(all_g.row(i) + j,
                  simd::load(all_z.row(i) + j) - simd::load(all_target.row(i) + j));
    });
    return;
  }
  const T scale = T(1) / static_cast<T>(norm.columns);
  for_each_panel<T>(rows, [&](std::int64_t first, std::int64_t count) {
    const Rows<T> z = all_z.from(first);
    const Rows<T> target = all_target.from(first);
    const Rows<T> n = all_n.from(first);
    const Rows<T> g = all_g.from(first);
    const Statistics<T> s = statistics(norm, count, z);
    simd::store(rstd + first, s.rstd.vector());
    Vec<T> sums[2];  // of e and e * n
    row_sums<T>(count, norm.columns, sums, [&](std::int64_t i, std::int64_t j, Vec<T>* row) {
      const Vec<T> weight = simd::load(norm.weight + j);
      const Vec<T> x = s.normalized(norm, z, i, j);
      const Vec<T> y = simd::fma(weight, x, simd::load(norm.bias + j));
      const Vec<T> e = (y - simd::load(target.row(i) + j)) * weight;
      simd::store(n.row(i) + j, x);
      simd::store(g.row(i) + j, e);
      row[0] += e;
      row[1] = simd::fma(e, x, row[1]);
    });
    const Panel<T> negative_mean(sums[0] * -scale);
    const Panel<T> negative_mean_n(sums[1] * -scale);
    for (std::int64_t i = 0; i < count; ++i) {
      for_each_column<T>(norm.columns, [&](std::int64_t j) {
        Vec<T> e = simd::fma(simd::splat(negative_mean[i]), simd::load(norm.mask + j),
                             simd::load(g.row(i) + j));
        e = simd::fma(simd::splat(negative_mean_n[i]), simd::load(n.row(i) + j), e);
        simd::store(g.row(i) + j, e * s.rstd[i]);
      });
    }
  });
}

/// y = x + LN(z); without the norm y = z. y may alias z.
template <typename T>
void output(const Norm<T>& norm, std::int64_t rows, Rows<T> all_z, Rows<T> x, Rows<T> y) {
  if (!norm.enabled) {
    for_each_vector<T>(rows, norm.columns, [&](std::int64_t i, std::int64_t j) {
      simd::store(y.row(i) + j, simd::load(all_z.row(i) + j));
    });
    return;
  }
  for_each_panel<T>(rows, [&](std::int64_t first, std::int64_t count) {
    const Rows<T> z = all_z.from(first);
    const Statistics<T> s = statistics(norm, count, z);
    for (std::int64_t i = 0; i < count; ++i) {
      for_each_column<T>(norm.columns, [&](std::int64_t j) {
        const Vec<T> value = simd::fma(simd::load(norm.weight + j), s.normalized(norm, z, i, j),
                                       simd::load(norm.bias + j));
        simd::store(y.row(first + i) + j, value + simd::load(x.row(first + i) + j));
      });
    }
  });
}

/// d_z of y = LN(z), adding to the sums; without the norm d_z = d_y.
template <typename T>
void output_backward(const Norm<T>& norm, std::int64_t rows, Rows<T> all_z, Rows<T> all_d_y,
                     Rows<T> all_d_z, const NormSums<T>& norm_sums) {
  if (!norm.enabled) {
    for_each_vector<T>(rows, norm.columns, [&](std::int64_t i, std::int64_t j) {
      simd::store(all_d_z.row(i) + j, simd::load(all_d_y.row(i) + j));
    });
    return;
  }
  const T scale = T(1) / static_cast<T>(norm.columns);
  for_each_panel<T>(rows, [&](std::int64_t first, std::int64_t count) {
    const Rows<T> z = all_z.from(first);
    const Rows<T> d_y = all_d_y.from(first);
    const Rows<T> d_z = all_d_z.from(first);
    const Statistics<T> s = statistics(norm, count, z);
    Vec<T> sums[2];  // of h = d_y * gamma and h * n
    row_sums<T>(count, norm.columns, sums, [&](std::int64_t i, std::int64_t j, Vec<T>* row) {
      const Vec<T> n = s.normalized(norm, z, i, j);
      const Vec<T> d = simd::load(d_y.row(i) + j);
      const Vec<T> h = d * simd::load(norm.weight + j);
      T* d_weight = norm_sums.d_weight + j;
      T* d_bias = norm_sums.d_bias + j;
      simd::store(d_weight, simd::fma(d, n, simd::load(d_weight)));
      simd::store(d_bias, d + simd::load(d_bias));
      row[0] += h;
      row[1] = simd::fma(h, n, row[1]);
    });
    const Panel<T> negative_mean(sums[0] * -scale);
    const Panel<T> negative_mean_n(sums[1] * -scale);
    for (std::int64_t i = 0; i < count; ++i) {
      for_each_column<T>(norm.columns, [&](std::int64_t j) {
        const Vec<T> n = s.normalized(norm, z, i, j);
        Vec<T> h = simd::load(d_y.row(i) + j) * simd::load(norm.weight + j);
        h = simd::fma(simd::splat(negative_mean[i]), simd::load(norm.mask + j), h);
        simd::store(d_z.row(i) + j, simd::fma(simd::splat(negative_mean_n[i]), n, h) * s.rstd[i]);
      });
    }
  });
}

/// What loss_gradient left for its backward, from some row on.
template <typename T>
struct LossGradientSaved {
  Rows<T> n, g, target;
  const T* rstd = nullptr;

  [[nodiscard]] LossGradientSaved from(std::int64_t row) const {
    return {n.from(row), g.from(row), target.from(row), rstd + row};
  }
  /// rho = gamma * n + beta - target.
  [[nodiscard, gnu::always_inline]] Vec<T> residual(const Norm<T>& norm, std::int64_t i,
                                                    std::int64_t j) const {
    return simd::fma(simd::load(norm.weight + j), simd::load(n.row(i) + j),
                     simd::load(norm.bias + j)) -
           simd::load(target.row(i) + j);
  }
};

/// One panel of loss_gradient_backward; d_z may alias u.
template <typename T>
void loss_gradient_backward_panel(const Norm<T>& norm, std::int64_t count,
                                  const LossGradientSaved<T>& saved, Rows<T> u, Rows<T> d_z,
                                  Rows<T> d_target, const NormSums<T>& norm_sums) {
  const T scale = T(1) / static_cast<T>(norm.columns);
  Vec<T> sums[4];  // of u, u * n, e * n, u * g
  row_sums<T>(count, norm.columns, sums, [&](std::int64_t i, std::int64_t j, Vec<T>* row) {
    const Vec<T> d = simd::load(u.row(i) + j);
    const Vec<T> n = simd::load(saved.n.row(i) + j);
    row[0] += d;
    row[1] = simd::fma(d, n, row[1]);
    row[2] = simd::fma(saved.residual(norm, i, j) * simd::load(norm.weight + j), n, row[2]);
    row[3] = simd::fma(d, simd::load(saved.g.row(i) + j), row[3]);
  });
  const Vec<T> rstd = simd::load(saved.rstd);
  const Panel<T> negative_mean_u(sums[0] * -scale);
  const Panel<T> negative_mean_u_n(sums[1] * -scale);
  const Panel<T> e_factor(sums[1] * rstd * -scale);
  const Panel<T> u_factor(sums[2] * rstd * -scale);
  Vec<T> d_n_sums[2];  // of dn and dn * n
  row_sums<T>(count, norm.columns, d_n_sums, [&](std::int64_t i, std::int64_t j, Vec<T>* row) {
    const Vec<T> weight = simd::load(norm.weight + j);
    const Vec<T> d = simd::load(u.row(i) + j);
    const Vec<T> n = simd::load(saved.n.row(i) + j);
    const Vec<T> rho = saved.residual(norm, i, j);
    const Vec<T> centred = simd::fma(simd::splat(negative_mean_u[i]), simd::load(norm.mask + j), d);
    const Vec<T> d_e = simd::fma(simd::splat(negative_mean_u_n[i]), n, centred) * saved.rstd[i];
    const Vec<T> d_rho = d_e * weight;
    T* d_weight = norm_sums.d_weight + j;
    T* d_bias = norm_sums.d_bias + j;
    simd::store(d_target.row(i) + j, -d_rho);
    simd::store(d_bias, d_rho + simd::load(d_bias));
    simd::store(d_weight, simd::fma(d_e, rho, simd::fma(d_rho, n, simd::load(d_weight))));
    const Vec<T> through_e = simd::fma(simd::splat(e_factor[i]), rho * weight, d_rho * weight);
    const Vec<T> d_n = simd::fma(simd::splat(u_factor[i]), d, through_e);
    simd::store(d_z.row(i) + j, d_n);
    row[0] += d_n;
    row[1] = simd::fma(d_n, n, row[1]);
  });
  // The second sum also carries the explicit 1/s of G: -n (u . g) / (s F).
  const Panel<T> negative_mean(d_n_sums[0] * -scale);
  const Panel<T> n_factor((d_n_sums[1] + sums[3]) * -scale);
  for (std::int64_t i = 0; i < count; ++i) {
    for_each_column<T>(norm.columns, [&](std::int64_t j) {
      const Vec<T> d_n = simd::fma(simd::splat(negative_mean[i]), simd::load(norm.mask + j),
                                   simd::load(d_z.row(i) + j));
      simd::store(
          d_z.row(i) + j,
          simd::fma(simd::splat(n_factor[i]), simd::load(saved.n.row(i) + j), d_n) * saved.rstd[i]);
    });
  }
}

/// From u = dL/dG: d_z and d_target, adding to the sums. d_z may alias u.
template <typename T>
void loss_gradient_backward(const Norm<T>& norm, std::int64_t rows,
                            const LossGradientSaved<T>& saved, Rows<T> u, Rows<T> d_z,
                            Rows<T> d_target, const NormSums<T>& norm_sums) {
  if (!norm.enabled) {
    for_each_vector<T>(rows, norm.columns, [&](std::int64_t i, std::int64_t j) {
      const Vec<T> d = simd::load(u.row(i) + j);
      simd::store(d_z.row(i) + j, d);
      simd::store(d_target.row(i) + j, -d);
    });
    return;
  }
  for_each_panel<T>(rows, [&](std::int64_t first, std::int64_t count) {
    loss_gradient_backward_panel(norm, count, saved.from(first), u.from(first), d_z.from(first),
                                 d_target.from(first), norm_sums);
  });
}

}  // namespace ttt::kernels::ttt_cpu
