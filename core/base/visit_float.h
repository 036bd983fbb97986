#pragma once
// From a floating-point element type at run time to one in a template.

#include <utility>

#include "core/base/dtype.h"
#include "core/base/error.h"

namespace ttt {

/// Calls f(double{}), f(float{}) or f(BFloat16{}); throws kInternal for other types.
template <typename F>
void visit_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF64:
      return std::forward<F>(f)(double{});
    case DType::kF32:
      return std::forward<F>(f)(float{});
    case DType::kBF16:
      return std::forward<F>(f)(BFloat16{});
    default:
      TTT_CHECK(false, "a floating-point tensor is needed, not {}", name_of(dtype));
  }
}

}  // namespace ttt
