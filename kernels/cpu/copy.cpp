#include "kernels/copy.h"

#include <cstring>

#include "kernels/cpu/row_blocks.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {

void copy(TensorView from, TensorView to, Stream& stream) {
  expect_shape("to", to, from.shape());
  if (const DeviceOps* ops = device_ops(stream)) return ops->copy(from, to, stream);
  ttt::copy(from, to);
}

void fill(TensorView y, double value, Stream& stream) {
  if (const DeviceOps* ops = device_ops(stream)) return ops->fill(y, value, stream);
  ttt::fill(y, value);
}

void copy_columns(TensorView from, std::int64_t from_begin, TensorView to, std::int64_t to_begin,
                  std::int64_t columns, Stream& stream) {
  const std::int64_t rows = from.size(0);
  expect_shape("from", from, {rows, from.size(-1)});
  expect_shape("to", to, {rows, to.size(-1)});
  TTT_CHECK(from.dtype() == to.dtype(), "from is {}, to is {}", name_of(from.dtype()),
            name_of(to.dtype()));
  TTT_CHECK(from_begin >= 0 && columns >= 0 && from_begin + columns <= from.size(1) &&
                to_begin >= 0 && to_begin + columns <= to.size(1),
            "{} columns from {} of {} on to {} of {} on", columns, from_begin, from.shape().str(),
            to_begin, to.shape().str());
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->copy_columns(from, from_begin, to, to_begin, columns, stream);
  }
  const std::int64_t element = size_of(from.dtype());
  const auto* source = static_cast<const std::byte*>(from.raw()) + from_begin * element;
  auto* target = static_cast<std::byte*>(to.raw()) + to_begin * element;
  for_each_block(rows, columns, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      std::memcpy(target + r * to.size(1) * element, source + r * from.size(1) * element,
                  static_cast<std::size_t>(columns * element));
    }
  });
}

Tensor zeros(const Shape& shape, DType dtype, Stream& stream) {
  Tensor result(shape, dtype);
  fill(result, 0, stream);
  return result;
}

Tensor to_dtype(TensorView x, DType dtype, Stream& stream) {
  Tensor result(x.shape(), dtype);
  copy(x, result, stream);
  return result;
}

}  // namespace ttt::kernels
