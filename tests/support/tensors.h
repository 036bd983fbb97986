#pragma once
// Tensors from plain vectors and back, for kernel tests.

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "core/base/tensor.h"

namespace ttt::test {

/// A tensor of `dtype` with these elements.
inline Tensor tensor_of(const std::vector<double>& values, const Shape& shape, DType dtype) {
  Tensor wide(shape, DType::kF64);
  TTT_CHECK(static_cast<std::int64_t>(values.size()) == shape.numel(), "{} values for {}",
            values.size(), shape.str());
  std::ranges::copy(values, wide.data<double>());
  return to_dtype(wide, dtype);
}

inline std::vector<double> values_of(const TensorView& view) {
  const Tensor wide = to_dtype(view, DType::kF64);
  return {wide.span<double>().begin(), wide.span<double>().end()};
}

/// A tensor full of NaN: what a kernel must overwrite.
inline Tensor unset(const Shape& shape, DType dtype) {
  Tensor tensor(shape, dtype);
  fill(tensor, std::numeric_limits<double>::quiet_NaN());
  return tensor;
}

/// What an Error thrown by `action` says; "" when it throws none.
template <typename Action>
std::string error_of(Action&& action, ExitCode* code = nullptr) {
  try {
    action();
  } catch (const Error& error) {
    if (code != nullptr) *code = error.code();
    return error.what();
  }
  return "";
}

}  // namespace ttt::test
