#pragma once
// Definition of kernels/non_finite.h.

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

namespace ttt::kernels::reference {

template <typename T>
double first_non_finite(std::span<const T> x) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (!std::isfinite(x[i])) return static_cast<double>(i);
  }
  return std::numeric_limits<double>::infinity();
}

}  // namespace ttt::kernels::reference
