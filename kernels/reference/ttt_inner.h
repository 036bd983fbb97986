#pragma once
// The inner loop of TTT on one mini-batch of one head: the definition, forward and backward.
//
//   J_{n,s}(u) = (u - mean u - n mean(u * n)) / s     the (symmetric) Jacobian of x -> (x - mean) / s
//   LN(z) = gamma * n + beta;  G = J(e), e = (gamma * n + beta - target) * gamma
//   read step: Z' = X' W + b - (M * (X' X^T + 1)) G;  update: W -= X^T diag(c_r l) G, b -= sum_j c_r l_j G_j
//
// Dims: r tokens, F features; a layer of the inner model maps n inputs to m outputs.
// Numerics: every operation in T; T may be std::complex for complex-step derivatives.
// Source: arXiv:2407.04620 appendix A; backward: docs/numerics.md, "TTT".

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/reference/matrix.h"

namespace ttt::kernels::reference {

template <typename T>
struct GeluTanh {
  static constexpr double kScale = 0.79788456080286535588;  // sqrt(2 / pi)
  static constexpr double kCubic = 0.044715;

  static T tanh_of(const T& x) {
    using std::tanh;
    return tanh(kScale * (x + kCubic * x * x * x));
  }
  static T value(const T& x) { return 0.5 * x * (T(1) + tanh_of(x)); }
  static T first_derivative(const T& x) {
    const T t = tanh_of(x);
    const T slope = kScale * (T(1) + 3 * kCubic * x * x);
    return 0.5 * (T(1) + t) + 0.5 * x * (T(1) - t * t) * slope;
  }
  static T second_derivative(const T& x) {
    const T t = tanh_of(x);
    const T slope = kScale * (T(1) + 3 * kCubic * x * x);
    const T bend = 6 * kScale * kCubic * x;
    return (T(1) - t * t) * (slope + 0.5 * x * (bend - 2.0 * t * slope * slope));
  }
};

/// The learned parameters of the inner LayerNorm; without `enabled` the identity.
template <typename T>
struct InnerNorm {
  bool enabled = true;
  std::vector<T> weight, bias;  // [F] gamma, beta
};

template <typename T>
struct NormGradients {
  std::vector<T> d_weight, d_bias;  // [F], added to
};

template <typename T>
struct Normalized {
  Matrix<T> n;
  std::vector<T> deviation;  // s = sqrt(variance + epsilon), [r]
};

template <typename T>
Normalized<T> normalize(const Matrix<T>& z) {
  constexpr double kEpsilon = 1e-6;
  const auto features = static_cast<double>(z.cols);
  Normalized<T> result{Matrix<T>(z.rows, z.cols), std::vector<T>(z.rows)};
  for (std::int64_t i = 0; i < z.rows; ++i) {
    T mean{};
    T variance{};
    for (std::int64_t f = 0; f < z.cols; ++f) mean += z(i, f) / features;
    for (std::int64_t f = 0; f < z.cols; ++f) {
      variance += (z(i, f) - mean) * (z(i, f) - mean) / features;
    }
    using std::sqrt;
    result.deviation[i] = sqrt(variance + kEpsilon);
    for (std::int64_t f = 0; f < z.cols; ++f) {
      result.n(i, f) = (z(i, f) - mean) / result.deviation[i];
    }
  }
  return result;
}

/// J_{n,s}(u), row by row.
template <typename T>
Matrix<T> project(const Normalized<T>& norm, const Matrix<T>& u) {
  const auto features = static_cast<double>(u.cols);
  Matrix<T> result(u.rows, u.cols);
  for (std::int64_t i = 0; i < u.rows; ++i) {
    T mean{};
    T mean_times_n{};
    for (std::int64_t f = 0; f < u.cols; ++f) {
      mean += u(i, f) / features;
      mean_times_n += u(i, f) * norm.n(i, f) / features;
    }
    for (std::int64_t f = 0; f < u.cols; ++f) {
      result(i, f) = (u(i, f) - mean - norm.n(i, f) * mean_times_n) / norm.deviation[i];
    }
  }
  return result;
}

/// LN(z).
template <typename T>
Matrix<T> layer_norm(const Matrix<T>& z, const InnerNorm<T>& norm) {
  if (!norm.enabled) return z;
  Matrix<T> y = normalize(z).n;
  for (std::int64_t i = 0; i < y.rows; ++i) {
    for (std::int64_t f = 0; f < y.cols; ++f) {
      y(i, f) = norm.weight[f] * y(i, f) + norm.bias[f];
    }
  }
  return y;
}

/// dz from dy.
template <typename T>
Matrix<T> layer_norm_backward(const Matrix<T>& z, const InnerNorm<T>& norm, const Matrix<T>& d_y,
                              NormGradients<T>& gradients) {
  if (!norm.enabled) return d_y;
  const Normalized<T> normalized = normalize(z);
  Matrix<T> d_n = d_y;
  for (std::int64_t i = 0; i < z.rows; ++i) {
    for (std::int64_t f = 0; f < z.cols; ++f) {
      gradients.d_weight[f] += d_y(i, f) * normalized.n(i, f);
      gradients.d_bias[f] += d_y(i, f);
      d_n(i, f) *= norm.weight[f];
    }
  }
  return project(normalized, d_n);
}

/// LN(z) - target.
template <typename T>
Matrix<T> residual(const Matrix<T>& z, const Matrix<T>& target, const InnerNorm<T>& norm) {
  return layer_norm(z, norm) - target;
}

/// G: the gradient of 1/2 |LN(z) - target|^2 with respect to z.
template <typename T>
Matrix<T> loss_gradient(const Matrix<T>& z, const Matrix<T>& target, const InnerNorm<T>& norm) {
  Matrix<T> e = residual(z, target, norm);
  if (!norm.enabled) return e;
  for (std::int64_t i = 0; i < e.rows; ++i) {
    for (std::int64_t f = 0; f < e.cols; ++f) e(i, f) *= norm.weight[f];
  }
  return project(normalize(z), e);
}

template <typename T>
struct LossGradientBackward {
  Matrix<T> d_z, d_target;
};

/// The backward of loss_gradient: from u = dL/dG.
template <typename T>
LossGradientBackward<T> loss_gradient_backward(const Matrix<T>& z, const Matrix<T>& target,
                                               const InnerNorm<T>& norm, const Matrix<T>& u,
                                               NormGradients<T>& gradients) {
  LossGradientBackward<T> result{u, map(u, [](const T& x) { return -x; })};
  if (!norm.enabled) return result;
  const auto features = static_cast<double>(z.cols);
  const Normalized<T> normalized = normalize(z);
  const Matrix<T>& n = normalized.n;
  const Matrix<T> rho = residual(z, target, norm);
  const Matrix<T> g = loss_gradient(z, target, norm);
  const Matrix<T> d_e = project(normalized, u);
  Matrix<T> d_n(z.rows, z.cols);
  for (std::int64_t i = 0; i < z.rows; ++i) {
    T mean_e_n{};
    T mean_u_n{};
    for (std::int64_t f = 0; f < z.cols; ++f) {
      mean_e_n += norm.weight[f] * rho(i, f) * n(i, f) / features;
      mean_u_n += u(i, f) * n(i, f) / features;
    }
    for (std::int64_t f = 0; f < z.cols; ++f) {
      const T d_rho = d_e(i, f) * norm.weight[f];
      result.d_target(i, f) = -d_rho;
      gradients.d_bias[f] += d_rho;
      gradients.d_weight[f] += d_e(i, f) * rho(i, f) + d_rho * n(i, f);
      d_n(i, f) =
          d_rho * norm.weight[f] -
          (mean_e_n * u(i, f) + norm.weight[f] * rho(i, f) * mean_u_n) / normalized.deviation[i];
    }
  }
  result.d_z = project(normalized, d_n);
  // The explicit 1/s of G.
  for (std::int64_t i = 0; i < z.rows; ++i) {
    T u_dot_g{};
    for (std::int64_t f = 0; f < z.cols; ++f) u_dot_g += u(i, f) * g(i, f);
    for (std::int64_t f = 0; f < z.cols; ++f) {
      result.d_z(i, f) -= n(i, f) * u_dot_g / (normalized.deviation[i] * features);
    }
  }
  return result;
}

/// One linear layer of the inner model: the fast weights [n, m] and [1, m] (zero without bias).
template <typename T>
struct InnerLayer {
  Matrix<T> w, b;
};

template <typename T>
Matrix<T> apply_layer(const InnerLayer<T>& layer, const Matrix<T>& x) {
  return add_to_rows(x * layer.w, layer.b);
}

/// How the tokens of a mini-batch enter the update: M_ij = scale_i lr_j for j <= i.
template <typename T>
struct StepSizes {
  std::vector<T> scale;  // [r] c_1..c_r
  std::vector<T> lr;     // [r] l
  bool bias = true;

  [[nodiscard]] T of(std::int64_t i, std::int64_t j) const {
    return j <= i ? scale[i] * lr[j] : T(0);
  }
  /// c_r l: what the state handed on has stepped by.
  [[nodiscard]] std::vector<T> last_row() const {
    std::vector<T> result = lr;
    for (T& value : result) value *= scale.back();
    return result;
  }
};

/// X' X^T + 1.
template <typename T>
Matrix<T> scores(const Matrix<T>& x_bar, const Matrix<T>& x, const StepSizes<T>& steps) {
  return map(x_bar * transpose(x), [&](const T& s) { return s + (steps.bias ? 1.0 : 0.0); });
}

template <typename T>
Matrix<T> step_matrix(const StepSizes<T>& steps) {
  const auto r = static_cast<std::int64_t>(steps.lr.size());
  Matrix<T> m(r, r);
  for (std::int64_t i = 0; i < r; ++i) {
    for (std::int64_t j = 0; j < r; ++j) m(i, j) = steps.of(i, j);
  }
  return m;
}

/// Z' of the read step: every row with its own token's weights.
template <typename T>
Matrix<T> read(const InnerLayer<T>& layer, const Matrix<T>& x_bar, const Matrix<T>& x,
               const Matrix<T>& g, const StepSizes<T>& steps) {
  return apply_layer(layer, x_bar) - hadamard(step_matrix(steps), scores(x_bar, x, steps)) * g;
}

/// The state after the mini-batch.
template <typename T>
InnerLayer<T> update(const InnerLayer<T>& layer, const Matrix<T>& x, const Matrix<T>& g,
                     const StepSizes<T>& steps) {
  const Matrix<T> scaled = scale_rows(steps.last_row(), g);
  InnerLayer<T> result = layer;
  result.w = layer.w - transpose(x) * scaled;
  if (steps.bias) result.b = layer.b - sum_of_rows(scaled);
  return result;
}

template <typename T>
struct ReadBackward {
  Matrix<T> d_x_bar, d_x, d_g;
  InnerLayer<T> d_layer;
};

/// The backward of `read` and `update` together; `d_next` is the gradient of the updated layer.
/// Adds to d_steps, the gradient of M.
template <typename T>
ReadBackward<T> read_backward(const InnerLayer<T>& layer, const Matrix<T>& x_bar,
                              const Matrix<T>& x, const Matrix<T>& g, const StepSizes<T>& steps,
                              const Matrix<T>& d_z_bar, const InnerLayer<T>& d_next,
                              Matrix<T>& d_steps) {
  const std::int64_t r = x.rows;
  const Matrix<T> m = step_matrix(steps);
  const Matrix<T> a = scores(x_bar, x, steps);
  const Matrix<T> d = d_z_bar * transpose(g);
  const Matrix<T> m_d = hadamard(m, d);
  const Matrix<T> update_read = apply_layer(d_next, x);  // X dW' + db'
  const std::vector<T> last = steps.last_row();
  for (std::int64_t i = 0; i < r; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) d_steps(i, j) -= d(i, j) * a(i, j);
  }
  for (std::int64_t j = 0; j < r; ++j) {
    for (std::int64_t f = 0; f < g.cols; ++f) d_steps(r - 1, j) -= update_read(j, f) * g(j, f);
  }
  ReadBackward<T> result;
  result.d_x_bar = d_z_bar * transpose(layer.w) - m_d * x;
  result.d_x =
      Matrix<T>(r, x.cols) - transpose(m_d) * x_bar - scale_rows(last, g * transpose(d_next.w));
  result.d_g =
      Matrix<T>(r, g.cols) - transpose(hadamard(m, a)) * d_z_bar - scale_rows(last, update_read);
  result.d_layer.w = transpose(x_bar) * d_z_bar + d_next.w;
  result.d_layer.b = d_next.b;
  if (steps.bias) result.d_layer.b = result.d_layer.b + sum_of_rows(d_z_bar);
  return result;
}

}  // namespace ttt::kernels::reference
