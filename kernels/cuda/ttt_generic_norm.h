#pragma once
// The LayerNorm of the TTT inner loop for the generic CUDA kernels: G of the loss, the output, and their backward.
// The counterpart of kernels/cpu/ttt_norm.h, with its names.
//
//   J_{n,s}(u) = (u - mean u - n mean(u * n)) / s;  G = J(e), e = (gamma * n + beta - target) * gamma
//
// A warp treats a row: every lane reads again only what it wrote itself. Sums over rows are a thread a column.
// Source: docs/numerics.md, "TTT".

#include "kernels/cuda/ttt_generic.h"

namespace ttt::kernels::cuda::generic {

/// Per-pair sums of dL/d gamma and dL/d beta.
struct NormSums {
  float *d_weight, *d_bias;  // [F]
};

struct Statistics {
  float mean, rstd;
};

/// Of one row, by the whole warp.
__device__ inline Statistics statistics(std::int64_t columns, const float* z) {
  const float scale = 1.0F / static_cast<float>(columns);
  const float mean = scale * row_sum(columns, [&](std::int64_t j) { return z[j]; });
  const float variance = scale * row_sum(columns, [&](std::int64_t j) {
                           const float centred = z[j] - mean;
                           return centred * centred;
                         });
  return {mean, rsqrtf(variance + 1e-6F)};
}

/// g = dL/dz of 1/2 |LN(z) - target|^2; keeps n and rstd for the backward.
__attribute__((noinline)) __device__ inline void loss_gradient(const Norm& norm, std::int64_t rows,
                                                               Rows z, Rows target, Rows n,
                                                               float* rstd, Rows g) {
  const std::int64_t columns = norm.columns;
  if (!norm.enabled) {
    for_each_entry(rows, columns, [&](std::int64_t i, std::int64_t j) {
      g.at(i, j) = z.at(i, j) - target.at(i, j);
    });
    return;
  }
  const float scale = 1.0F / static_cast<float>(columns);
  for_each_row(rows, [&](std::int64_t i) {
    const Statistics s = statistics(columns, z.row(i));
    if (this_lane() == 0) rstd[i] = s.rstd;
    const float mean_e = scale * row_sum(columns, [&](std::int64_t j) {
                           const float x = (z.at(i, j) - s.mean) * s.rstd;
                           const float rho = norm.weight[j] * x + norm.bias[j] - target.at(i, j);
                           n.at(i, j) = x;
                           g.at(i, j) = rho * norm.weight[j];
                           return g.at(i, j);
                         });
    const float mean_e_n =
        scale * row_sum(columns, [&](std::int64_t j) { return g.at(i, j) * n.at(i, j); });
    for (std::int64_t j = this_lane(); j < columns; j += kLanes) {
      g.at(i, j) = (g.at(i, j) - mean_e - n.at(i, j) * mean_e_n) * s.rstd;
    }
  });
}

/// y = x + LN(z); without the norm y = z. y may alias z.
__attribute__((noinline)) __device__ inline void output(const Norm& norm, std::int64_t rows, Rows z,
                                                        Rows x, Rows y) {
  const std::int64_t columns = norm.columns;
  if (!norm.enabled) {
    for_each_entry(rows, columns, [&](std::int64_t i, std::int64_t j) { y.at(i, j) = z.at(i, j); });
    return;
  }
  for_each_row(rows, [&](std::int64_t i) {
    const Statistics s = statistics(columns, z.row(i));
    for (std::int64_t j = this_lane(); j < columns; j += kLanes) {
      const float n = (z.at(i, j) - s.mean) * s.rstd;
      y.at(i, j) = x.at(i, j) + norm.weight[j] * n + norm.bias[j];
    }
  });
}

/// d_z of y = LN(z), adding to the sums; without the norm d_z = d_y. z is overwritten.
__attribute__((noinline)) __device__ inline void output_backward(const Norm& norm,
                                                                 std::int64_t rows, Rows z,
                                                                 Rows d_y, Rows d_z,
                                                                 const NormSums& sums) {
  const std::int64_t columns = norm.columns;
  if (!norm.enabled) {
    for_each_entry(rows, columns,
                   [&](std::int64_t i, std::int64_t j) { d_z.at(i, j) = d_y.at(i, j); });
    return;
  }
  const float scale = 1.0F / static_cast<float>(columns);
  const Rows n = z;
  for_each_row(rows, [&](std::int64_t i) {
    const Statistics s = statistics(columns, z.row(i));
    // Rounded before it is used: of one column mean_h is h, and a fused h - mean_h would be the product's rounding error
    // where it must be zero.
    const auto h = [&](std::int64_t j) { return opaque(d_y.at(i, j) * norm.weight[j]); };
    const float mean_h = scale * row_sum(columns, h);
    const float mean_h_n = scale * row_sum(columns, [&](std::int64_t j) {
                             n.at(i, j) = (z.at(i, j) - s.mean) * s.rstd;
                             return h(j) * n.at(i, j);
                           });
    for (std::int64_t j = this_lane(); j < columns; j += kLanes) {
      d_z.at(i, j) = (h(j) - mean_h - n.at(i, j) * mean_h_n) * s.rstd;
    }
  });
  for_each_index(columns, [&](std::int64_t j) {
    float d_weight = 0.0F;
    float d_bias = 0.0F;
    for (std::int64_t i = 0; i < rows; ++i) {
      d_weight += d_y.at(i, j) * n.at(i, j);
      d_bias += d_y.at(i, j);
    }
    sums.d_weight[j] += d_weight;
    sums.d_bias[j] += d_bias;
  });
}

/// What loss_gradient left for its backward.
struct LossGradientSaved {
  Rows n, g, target;
  const float* rstd;

  /// rho = gamma * n + beta - target.
  __device__ float residual(const Norm& norm, std::int64_t i, std::int64_t j) const {
    return norm.weight[j] * n.at(i, j) + norm.bias[j] - target.at(i, j);
  }
};

/// Row i of loss_gradient_backward, by the whole warp: d_z, and d_e in d_target's place.
__device__ inline void loss_gradient_row_backward(const Norm& norm, std::int64_t i,
                                                  const LossGradientSaved& saved, Rows u, Rows d_z,
                                                  Rows d_e) {
  const std::int64_t columns = norm.columns;
  const float scale = 1.0F / static_cast<float>(columns);
  const Rows& n = saved.n;
  const float rstd = saved.rstd[i];
  const auto e = [&](std::int64_t j) { return saved.residual(norm, i, j) * norm.weight[j]; };
  const float mean_u = scale * row_sum(columns, [&](std::int64_t j) { return u.at(i, j); });
  const float mean_u_n =
      scale * row_sum(columns, [&](std::int64_t j) { return u.at(i, j) * n.at(i, j); });
  const float mean_e_n =
      scale * row_sum(columns, [&](std::int64_t j) { return e(j) * n.at(i, j); });
  const float mean_u_g =
      scale * row_sum(columns, [&](std::int64_t j) { return u.at(i, j) * saved.g.at(i, j); });
  const float mean_d_n = scale * row_sum(columns, [&](std::int64_t j) {
                           const float d = u.at(i, j);
                           d_e.at(i, j) = (d - mean_u - n.at(i, j) * mean_u_n) * rstd;
                           const float d_rho = d_e.at(i, j) * norm.weight[j];
                           d_z.at(i, j) =
                               d_rho * norm.weight[j] - (mean_e_n * d + mean_u_n * e(j)) * rstd;
                           return d_z.at(i, j);
                         });
  const float mean_d_n_n =
      scale * row_sum(columns, [&](std::int64_t j) { return d_z.at(i, j) * n.at(i, j); });
  for (std::int64_t j = this_lane(); j < columns; j += kLanes) {
    // mean_u_g: the explicit 1/s of G, -n (u . g) / (s F).
    d_z.at(i, j) = (d_z.at(i, j) - mean_d_n - n.at(i, j) * (mean_d_n_n + mean_u_g)) * rstd;
  }
}

/// From u = dL/dG: d_z and d_target, adding to the sums. d_z may alias u.
__attribute__((noinline)) __device__ inline void loss_gradient_backward(
    const Norm& norm, std::int64_t rows, const LossGradientSaved& saved, Rows u, Rows d_z,
    Rows d_target, const NormSums& sums) {
  const std::int64_t columns = norm.columns;
  if (!norm.enabled) {
    for_each_entry(rows, columns, [&](std::int64_t i, std::int64_t j) {
      const float d = u.at(i, j);
      d_z.at(i, j) = d;
      d_target.at(i, j) = -d;
    });
    return;
  }
  for_each_row(
      rows, [&](std::int64_t i) { loss_gradient_row_backward(norm, i, saved, u, d_z, d_target); });
  for_each_index(columns, [&](std::int64_t j) {
    float d_weight = 0.0F;
    float d_bias = 0.0F;
    for (std::int64_t i = 0; i < rows; ++i) {
      const float d_e = d_target.at(i, j);
      const float d_rho = d_e * norm.weight[j];
      d_weight += d_e * saved.residual(norm, i, j) + d_rho * saved.n.at(i, j);
      d_bias += d_rho;
      d_target.at(i, j) = -d_rho;
    }
    sums.d_weight[j] += d_weight;
    sums.d_bias[j] += d_bias;
  });
}

}  // namespace ttt::kernels::cuda::generic
