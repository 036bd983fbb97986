#pragma once
// Gradient checks by complex step, and the comparisons that every kernel test uses.
//
//   df/dx_j = imag(f(x + i h e_j)) / h with h = 1e-30: no subtraction, so exact to rounding.
//
// Source: Squire and Trapp, "Using complex variables to estimate derivatives of real functions" (1998).

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/rng.h"

namespace ttt::test {

/// Standard normal values, a pure function of (name, index).
inline std::vector<double> random_values(const std::string& name, std::int64_t count) {
  const CounterRng rng(20240705, name);
  std::vector<double> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = rng.normal(i);
  return values;
}

using Complex = std::complex<double>;

inline double as_double(double value) { return value; }
inline double as_double(BFloat16 value) { return static_cast<double>(static_cast<float>(value)); }

inline std::vector<Complex> to_complex(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

/// sum_i weights[i] outputs[i]: the loss whose gradient with respect to `outputs` is `weights`.
inline Complex weighted_sum(const std::vector<double>& weights,
                            const std::vector<Complex>& outputs) {
  Complex sum{};
  for (std::size_t i = 0; i < weights.size(); ++i) sum += weights[i] * outputs[i];
  return sum;
}

/// Largest |actual - expected| is at most `tolerance` times the largest |expected| (or `tolerance` itself where all
/// expected values are zero). Both are contiguous ranges of float or double.
template <typename Actual, typename Expected>
void expect_close(const std::string& name, const Actual& actual, const Expected& expected,
                  double tolerance) {
  ASSERT_EQ(actual.size(), expected.size()) << name;
  double largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(as_double(expected[i])));
  }
  const double allowed = tolerance * (largest > 0 ? largest : 1.0);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(as_double(actual[i]) - as_double(expected[i]));
    // Negated so that NaN fails. One report a tensor is enough.
    if (!(error <= allowed)) {
      ADD_FAILURE() << name << "[" << i << "] is " << as_double(actual[i]) << ", expected "
                    << as_double(expected[i]) << " within " << allowed;
      return;
    }
  }
}

/// `functor(std::vector<std::complex<double>>) -> std::complex<double>` is the scalar loss as a function of the tensor
/// whose gradient `analytic` claims to be. Tolerance 1e-10 of the largest derivative; 1e-14 where all are tiny.
template <typename Functor>
void expect_gradient(const std::string& name, std::span<const double> analytic,
                     std::vector<double> inputs, Functor&& functor) {
  constexpr double kStep = 1e-30;
  ASSERT_EQ(analytic.size(), inputs.size()) << name;
  std::vector<std::complex<double>> point(inputs.begin(), inputs.end());
  std::vector<double> derivative(inputs.size());
  for (std::size_t j = 0; j < inputs.size(); ++j) {
    point[j] = {inputs[j], kStep};
    derivative[j] = functor(point).imag() / kStep;
    point[j] = inputs[j];
  }
  double largest = 0;
  for (const double value : derivative) largest = std::max(largest, std::abs(value));
  const double allowed = std::max(1e-10 * largest, 1e-14);
  for (std::size_t j = 0; j < inputs.size(); ++j) {
    if (!(std::abs(analytic[j] - derivative[j]) <= allowed)) {
      ADD_FAILURE() << name << "[" << j << "] is " << analytic[j] << ", complex step says "
                    << derivative[j] << " within " << allowed;
      return;
    }
  }
}

}  // namespace ttt::test
