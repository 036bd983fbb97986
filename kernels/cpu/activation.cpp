#include "kernels/activation.h"

#include <cmath>

#include "kernels/activation_jets.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/row_blocks.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

constexpr std::int64_t kStepsPerValue = 4;  // of an exponential, beside a plain product

}  // namespace

void swiglu_forward(TensorView gate_up, TensorView h, Stream& stream) {
  const std::int64_t rows = h.size(0);
  const std::int64_t hidden = h.size(1);
  expect_shape("gate_up", gate_up, {rows, 2 * hidden});
  expect_shape("h", h, {rows, hidden});
  if (const DeviceOps* ops = device_ops(stream)) return ops->swiglu_forward(gate_up, h, stream);
  visit_real(h.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const gate_up_data = gate_up.data<T>();
    T* const h_data = h.data<T>();
    for_each_block(rows, hidden * kStepsPerValue, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t n = begin; n < end; ++n) {
        const T* const gate = gate_up_data + n * 2 * hidden;
        const T* const up = gate + hidden;
        T* const h_row = h_data + n * hidden;
#pragma omp simd
        for (std::int64_t i = 0; i < hidden; ++i) {
          h_row[i] = Silu<CpuMath>::at(gate[i]).value * up[i];
        }
      }
    });
  });
}

void swiglu_backward(TensorView gate_up, TensorView d_h, TensorView d_gate_up, TensorView h,
                     Stream& stream) {
  const std::int64_t rows = d_h.size(0);
  const std::int64_t hidden = d_h.size(1);
  expect_shape("gate_up", gate_up, {rows, 2 * hidden});
  expect_shape("d_h", d_h, {rows, hidden});
  expect_shape("d_gate_up", d_gate_up, {rows, 2 * hidden});
  expect_shape("h", h, {rows, hidden});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->swiglu_backward(gate_up, d_h, d_gate_up, h, stream);
  }
  visit_real(h.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const gate_up_data = gate_up.data<T>();
    const T* const d_h_data = d_h.data<T>();
    T* const d_gate_up_data = d_gate_up.data<T>();
    T* const h_data = h.data<T>();
    for_each_block(rows, hidden * kStepsPerValue, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t n = begin; n < end; ++n) {
        const T* const gate = gate_up_data + n * 2 * hidden;
        T* const d_gate = d_gate_up_data + n * 2 * hidden;
        const T* const d_h_row = d_h_data + n * hidden;
        T* const h_row = h_data + n * hidden;
#pragma omp simd
        for (std::int64_t i = 0; i < hidden; ++i) {
          const Jet<T> silu = Silu<CpuMath>::at(gate[i]);
          const T up = gate[hidden + i];
          const T d = d_h_row[i];
          h_row[i] = silu.value * up;
          d_gate[i] = d * up * silu.slope;
          d_gate[hidden + i] = d * silu.value;
        }
      }
    });
  });
}

void add(TensorView x, TensorView y, Stream& stream) {
  expect_shape("x", x, x.shape());
  expect_shape("y", y, x.shape());
  if (const DeviceOps* ops = device_ops(stream)) return ops->add(x, y, stream);
  visit_real(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const x_data = x.data<T>();
    T* const y_data = y.data<T>();
    for_each_block(x.numel(), 1, [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) y_data[i] += x_data[i];
    });
  });
}

}  // namespace ttt::kernels
