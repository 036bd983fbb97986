#pragma once
// What the references need to run on double and on std::complex<double> alike (complex-step gradients).

#include <complex>

namespace ttt::kernels::reference {

inline double real_part(double value) { return value; }
inline double real_part(const std::complex<double>& value) { return value.real(); }

}  // namespace ttt::kernels::reference
