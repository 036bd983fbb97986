#pragma once
// Definition of kernels/adamw.h (equations there).

#include <cmath>
#include <complex>
#include <span>

#include "kernels/adamw.h"

namespace ttt::kernels::reference {

template <typename T>
void adamw(std::span<T> parameters,       // [n] in-out
           std::span<const T> gradients,  // [n]
           std::span<T> m,                // [n] in-out
           std::span<T> v,                // [n] in-out
           double squares,                // of all gradients
           double t,                      // counted from 1
           const AdamWStep& step) {
  const double norm = std::sqrt(squares);
  if (!std::isfinite(norm)) return;
  const double scale = clip_scale(norm, step.clip_norm);
  const double correction_1 = 1.0 - std::pow(step.beta1, t);
  const double correction_2 = 1.0 - std::pow(step.beta2, t);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const T g = gradients[i] * scale;
    m[i] = step.beta1 * m[i] + (1.0 - step.beta1) * g;
    v[i] = step.beta2 * v[i] + (1.0 - step.beta2) * g * g;
    const T direction = m[i] / correction_1 / (std::sqrt(v[i] / correction_2) + step.epsilon);
    parameters[i] -= step.learning_rate * (direction + step.weight_decay * parameters[i]);
  }
}

template <typename T>
T sum_of_squares(std::span<const T> x) {
  T sum{};
  for (const T& value : x) sum += value * value;
  return sum;
}

}  // namespace ttt::kernels::reference
