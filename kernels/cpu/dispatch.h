#pragma once
// From a run-time element type to a template argument.

#include <utility>

#include "core/base/tensor.h"

namespace ttt::kernels {

/// Calls f(double{}) or f(float{}); throws for other element types.
template <typename F>
void visit_real(DType dtype, F&& f) {
  TTT_CHECK(dtype == DType::kF64 || dtype == DType::kF32, "F32 or F64 needed, not {}",
            name_of(dtype));
  if (dtype == DType::kF64) {
    std::forward<F>(f)(double{});
  } else {
    std::forward<F>(f)(float{});
  }
}

}  // namespace ttt::kernels
