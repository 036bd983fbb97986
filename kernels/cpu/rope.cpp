#include "kernels/rope.h"

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/rotation.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

void check(const char* x_name, const TensorView& x, const char* y_name, const TensorView& y,
           const RopeOptions& options) {
  const auto head_dim = x.size(3);
  expect_shape(x_name, x, {x.size(0), x.size(1), x.size(2), head_dim});
  expect_shape(y_name, y, x.shape());
  check_rope(options, head_dim);
}

void rotate(const TensorView& x, const TensorView& y, const RopeOptions& options, int sign) {
  const auto batch = x.size(0);
  const auto tokens = x.size(1);
  const auto heads = x.size(2);
  const auto head_dim = x.size(3);
  visit_real(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const x_data = x.data<T>();
    T* const y_data = y.data<T>();
    const Rotation<T> rotation(tokens, head_dim, options);
    for_each_block(batch * tokens, heads * head_dim, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const auto at = row * heads * head_dim;
        rotation.turn(x_data + at, y_data + at, row % tokens, heads, static_cast<T>(sign));
      }
    });
  });
}

}  // namespace

void rope_forward(TensorView x, TensorView y, const RopeOptions& options, Stream& stream) {
  check("x", x, "y", y, options);
  if (const DeviceOps* ops = device_ops(stream)) return ops->rope_forward(x, y, options, stream);
  rotate(x, y, options, 1);
}

void rope_backward(TensorView d_y, TensorView d_x, const RopeOptions& options, Stream& stream) {
  check("d_y", d_y, "d_x", d_x, options);
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->rope_backward(d_y, d_x, options, stream);
  }
  rotate(d_y, d_x, options, -1);
}

}  // namespace ttt::kernels
