#include "kernels/copy.h"

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
