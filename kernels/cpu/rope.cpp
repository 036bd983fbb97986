#include "kernels/rope.h"

#include <cmath>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/row_blocks.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

// Cosines and sines [2, P, F/2] of the first P tokens, after which positions repeat.
template <typename T>
Tensor rotation_table(std::int64_t tokens, std::int64_t half, const RopeOptions& options) {
  const std::int64_t positions = options.period == 0 ? tokens : std::min(tokens, options.period);
  Tensor table(Shape{2, positions, half}, kDType<T>);
  T* const cosine = table.data<T>();
  T* const sine = cosine + positions * half;
  Tensor frequencies(Shape{half}, DType::kF64);
  double* const frequency = frequencies.data<double>();
  for (std::int64_t i = 0; i < half; ++i) {
    frequency[i] = std::pow(options.base, -static_cast<double>(i) / static_cast<double>(half));
  }
  constexpr std::int64_t kStepsPerAngle = 50;
  for_each_block(positions, half * kStepsPerAngle, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t unwrapped = options.first_position + p;
      const std::int64_t position = options.period == 0 ? unwrapped : unwrapped % options.period;
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(position) * frequency[i];
        cosine[p * half + i] = static_cast<T>(std::cos(angle));
        sine[p * half + i] = static_cast<T>(std::sin(angle));
      }
    }
  });
  return table;
}

// Rotates one head by `sign` times its angles. x and y may be the same memory: a pair is read, then written.
template <typename T>
void rotate_head(const T* x, T* y, const T* cosine, const T* sine, T sign, std::int64_t half,
                 RopePairing pairing) {
  // NOLINTNEXTLINE(bugprone-branch-clone): the indices differ
  if (pairing == RopePairing::kHalves) {
#pragma omp simd
    for (std::int64_t i = 0; i < half; ++i) {
      const T a = x[i];
      const T b = x[half + i];
      const T s = sign * sine[i];
      y[i] = a * cosine[i] - b * s;
      y[half + i] = a * s + b * cosine[i];
    }
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < half; ++i) {
      const T a = x[2 * i];
      const T b = x[2 * i + 1];
      const T s = sign * sine[i];
      y[2 * i] = a * cosine[i] - b * s;
      y[2 * i + 1] = a * s + b * cosine[i];
    }
  }
}

void check(const char* x_name, const TensorView& x, const char* y_name, const TensorView& y,
           const RopeOptions& options) {
  const auto head_dim = x.size(3);
  expect_shape(x_name, x, {x.size(0), x.size(1), x.size(2), head_dim});
  expect_shape(y_name, y, x.shape());
  TTT_CHECK(head_dim % 2 == 0, "rotary embedding needs an even head dim, not {}", head_dim);
  TTT_CHECK(options.period >= 0 && options.first_position >= 0,
            "rotary embedding with period {} from position {}: neither may be negative",
            options.period, options.first_position);
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
    const auto half = head_dim / 2;
    const Tensor table = rotation_table<T>(tokens, half, options);
    const T* const cosine = table.data<T>();
    const T* const sine = cosine + table.numel() / 2;
    for_each_block(batch * tokens, heads * head_dim, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const auto p = row % tokens % table.size(1);
        for (std::int64_t h = 0; h < heads; ++h) {
          const auto at = (row * heads + h) * head_dim;
          rotate_head(x_data + at, y_data + at, cosine + p * half, sine + p * half,
                      static_cast<T>(sign), half, options.pairing);
        }
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
