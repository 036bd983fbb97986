#pragma once
// What the references need to run on double and on std::complex<double> alike (complex-step gradients).

#include <cmath>
#include <complex>

namespace ttt::kernels::reference {

inline double real_part(double value) { return value; }
inline double real_part(const std::complex<double>& value) { return value.real(); }

/// The error function. Off the real axis by its series: erf(z) = 2/sqrt(pi) exp(-z^2) sum_n 2^n z^(2n+1) / (2n+1)!!,
/// whose terms have one sign near the real axis.
inline double error_function(double z) { return std::erf(z); }
inline std::complex<double> error_function(const std::complex<double>& z) {
  std::complex<double> term = z;
  std::complex<double> sum = z;
  for (int n = 1; n < 400 && std::abs(term) > 1e-18 * std::abs(sum); ++n) {
    term *= 2.0 * z * z / (2.0 * n + 1.0);
    sum += term;
  }
  return 2.0 / std::sqrt(std::acos(-1.0)) * std::exp(-z * z) * sum;
}

}  // namespace ttt::kernels::reference
