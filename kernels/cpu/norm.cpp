#include "kernels/norm.h"

#include <cmath>

#include "kernels/activation_jets.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/norm_rows.h"
#include "kernels/cpu/row_blocks.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

template <typename T>
T* data_or_null(const TensorView& view) {
  return view.empty() ? nullptr : view.data<T>();
}

struct Moments {
  double mean;
  double rstd;
};

// Two passes: the one-pass variance cancels where the mean is large.
template <typename T>
Moments moments_of(const T* x, std::int64_t channels, double epsilon) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t c = 0; c < channels; ++c) sum += static_cast<double>(x[c]);
  const double mean = sum / static_cast<double>(channels);
  double squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t c = 0; c < channels; ++c) {
    const double centered = static_cast<double>(x[c]) - mean;
    squares += centered * centered;
  }
  return {mean, 1.0 / std::sqrt(squares / static_cast<double>(channels) + epsilon)};
}

template <typename T>
void layer_backward_row(const T* x, const T* w, T mean, T rstd, const T* d_y, T* d_x, double* sum_w,
                        double* sum_b, std::int64_t channels) {
  double sum_g = 0;    // g = w d_y
  double sum_gxh = 0;  // g times the normalised x
#pragma omp simd reduction(+ : sum_g, sum_gxh)
  for (std::int64_t c = 0; c < channels; ++c) {
    const T g = w[c] * d_y[c];
    sum_g += static_cast<double>(g);
    sum_gxh += static_cast<double>(g * ((x[c] - mean) * rstd));
  }
  const T mean_g = static_cast<T>(sum_g / static_cast<double>(channels));
  const T mean_gxh = static_cast<T>(sum_gxh / static_cast<double>(channels));
#pragma omp simd
  for (std::int64_t c = 0; c < channels; ++c) {
    const T d = d_y[c];
    const T normalized = (x[c] - mean) * rstd;
    sum_w[c] += static_cast<double>(d * normalized);
    sum_b[c] += static_cast<double>(d);
    d_x[c] = rstd * (w[c] * d - mean_g - normalized * mean_gxh);
  }
}

template <typename T>
struct GateRow {
  const T* gate;
  T* d_gate;
};

// y as forward has it and d_gate; d_normed [C], which may be d_y, is the gradient of what the gate multiplies.
template <typename T>
void gate_backward_row(const T* x, const T* w, const T* b, const GateRow<T>& row, T mean, T rstd,
                       const T* d_y, T* y, T* d_normed, std::int64_t channels) {
#pragma omp simd
  for (std::int64_t c = 0; c < channels; ++c) {
    const Jet<T> gelu = GeluTanh<CpuMath>::at(row.gate[c]);
    const T normed = w[c] * ((x[c] - mean) * rstd) + b[c];
    const T d = d_y[c];
    y[c] = gelu.value * normed;
    row.d_gate[c] = d * normed * gelu.slope;
    d_normed[c] = d * gelu.value;
  }
}

}  // namespace

void rms_norm_forward(TensorView x, TensorView w, TensorView y, TensorView rstd, double epsilon,
                      Stream& stream) {
  const auto rows = x.size(0);
  const auto channels = x.size(1);
  expect_shape("x", x, {rows, channels});
  expect_shape("w", w, {channels});
  expect_shape("y", y, {rows, channels});
  if (!rstd.empty()) expect_shape("rstd", rstd, {rows});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->rms_norm_forward(x, w, y, rstd, epsilon, stream);
  }
  visit_real(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const x_data = x.data<T>();
    const T* const w_data = w.data<T>();
    T* const y_data = y.data<T>();
    T* const rstd_data = data_or_null<T>(rstd);
    for_each_block(rows, channels, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t n = begin; n < end; ++n) {
        const T r =
            rms_norm_row(x_data + n * channels, w_data, y_data + n * channels, channels, epsilon);
        if (rstd_data != nullptr) rstd_data[n] = r;
      }
    });
  });
}

void rms_norm_backward(TensorView x, TensorView w, TensorView rstd, TensorView d_y,
                       TensorView d_beside, TensorView d_x, TensorView d_w, Stream& stream) {
  const auto rows = x.size(0);
  const auto channels = x.size(1);
  expect_shape("x", x, {rows, channels});
  expect_shape("w", w, {channels});
  expect_shape("rstd", rstd, {rows});
  expect_shape("d_y", d_y, {rows, channels});
  if (!d_beside.empty()) expect_shape("d_beside", d_beside, {rows, channels});
  expect_shape("d_x", d_x, {rows, channels});
  expect_shape("d_w", d_w, {channels});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->rms_norm_backward(x, w, rstd, d_y, d_beside, d_x, d_w, stream);
  }
  visit_real(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const x_data = x.data<T>();
    const T* const w_data = w.data<T>();
    const T* const rstd_data = rstd.data<T>();
    const T* const d_y_data = d_y.data<T>();
    const T* const d_beside_data = data_or_null<T>(d_beside);
    T* const d_x_data = d_x.data<T>();
    T* const d_w_data = d_w.data<T>();
    RowSums sums(rows, channels);
    sums.for_each_row([&](std::int64_t n, double* sum_w) {
      const std::int64_t at = n * channels;
      if (d_beside_data != nullptr) {
        rms_backward_row<T, true>(x_data + at, w_data, rstd_data[n], d_y_data + at,
                                  d_beside_data + at, d_x_data + at, sum_w, channels);
      } else {
        rms_backward_row<T, false>(x_data + at, w_data, rstd_data[n], d_y_data + at, nullptr,
                                   d_x_data + at, sum_w, channels);
      }
    });
    sums.add_to(d_w_data, channels);
  });
}

void layer_norm_forward(TensorView x, TensorView w, TensorView b, TensorView gate, TensorView y,
                        TensorView mean, TensorView rstd, double epsilon, Stream& stream) {
  const auto rows = x.size(0);
  const auto channels = x.size(1);
  expect_shape("x", x, {rows, channels});
  expect_shape("w", w, {channels});
  expect_shape("b", b, {channels});
  if (!gate.empty()) expect_shape("gate", gate, {rows, channels});
  expect_shape("y", y, {rows, channels});
  if (!mean.empty()) expect_shape("mean", mean, {rows});
  if (!rstd.empty()) expect_shape("rstd", rstd, {rows});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->layer_norm_forward(x, w, b, gate, y, mean, rstd, epsilon, stream);
  }
  visit_real(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const x_data = x.data<T>();
    const T* const w_data = w.data<T>();
    const T* const b_data = b.data<T>();
    const T* const gate_data = data_or_null<T>(gate);
    T* const y_data = y.data<T>();
    T* const mean_data = data_or_null<T>(mean);
    T* const rstd_data = data_or_null<T>(rstd);
    for_each_block(rows, channels, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t n = begin; n < end; ++n) {
        const T* const x_row = x_data + n * channels;
        T* const y_row = y_data + n * channels;
        const Moments moments = moments_of(x_row, channels, epsilon);
        const T mu = static_cast<T>(moments.mean);
        const T r = static_cast<T>(moments.rstd);
        if (mean_data != nullptr) mean_data[n] = mu;
        if (rstd_data != nullptr) rstd_data[n] = r;
#pragma omp simd
        for (std::int64_t c = 0; c < channels; ++c) {
          y_row[c] = w_data[c] * ((x_row[c] - mu) * r) + b_data[c];
        }
        if (gate_data == nullptr) continue;
        const T* const gate_row = gate_data + n * channels;
#pragma omp simd
        for (std::int64_t c = 0; c < channels; ++c) {
          y_row[c] = GeluTanh<CpuMath>::at(gate_row[c]).value * y_row[c];
        }
      }
    });
  });
}

void layer_norm_backward(TensorView x, TensorView w, TensorView b, TensorView gate, TensorView mean,
                         TensorView rstd, TensorView d_y, TensorView y, TensorView d_x,
                         TensorView d_gate, TensorView d_w, TensorView d_b, Stream& stream) {
  const auto rows = x.size(0);
  const auto channels = x.size(1);
  expect_shape("x", x, {rows, channels});
  expect_shape("w", w, {channels});
  expect_shape("b", b, {channels});
  expect_shape("mean", mean, {rows});
  expect_shape("rstd", rstd, {rows});
  expect_shape("d_y", d_y, {rows, channels});
  expect_shape("y", y, {rows, channels});
  expect_shape("d_x", d_x, {rows, channels});
  if (!gate.empty()) {
    expect_shape("gate", gate, {rows, channels});
    expect_shape("d_gate", d_gate, {rows, channels});
  }
  expect_shape("d_w", d_w, {channels});
  expect_shape("d_b", d_b, {channels});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->layer_norm_backward(x, w, b, gate, mean, rstd, d_y, y, d_x, d_gate, d_w, d_b,
                                    stream);
  }
  visit_real(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const x_data = x.data<T>();
    const T* const w_data = w.data<T>();
    const T* const b_data = b.data<T>();
    const T* const gate_data = data_or_null<T>(gate);
    const T* const mean_data = mean.data<T>();
    const T* const rstd_data = rstd.data<T>();
    const T* const d_y_data = d_y.data<T>();
    T* const y_data = y.data<T>();
    T* const d_x_data = d_x.data<T>();
    T* const d_gate_data = data_or_null<T>(d_gate);
    T* const d_w_data = d_w.data<T>();
    T* const d_b_data = d_b.data<T>();
    RowSums sums(rows, 2 * channels);
    sums.for_each_row([&](std::int64_t n, double* sum) {
      const std::int64_t at = n * channels;
      const T* const x_row = x_data + at;
      const T mu = mean_data[n];
      const T r = rstd_data[n];
      T* const y_row = y_data + at;
      const T* d_normed = d_y_data + at;
      if (gate_data != nullptr) {
        gate_backward_row(x_row, w_data, b_data, {gate_data + at, d_gate_data + at}, mu, r,
                          d_y_data + at, y_row, d_x_data + at, channels);
        d_normed = d_x_data + at;
      } else {
#pragma omp simd
        for (std::int64_t c = 0; c < channels; ++c) {
          y_row[c] = w_data[c] * ((x_row[c] - mu) * r) + b_data[c];
        }
      }
      layer_backward_row(x_row, w_data, mu, r, d_normed, d_x_data + at, sum, sum + channels,
                         channels);
    });
    sums.add_to(d_w_data, channels);
    sums.add_to(d_b_data, channels, channels);
  });
}

}  // namespace ttt::kernels
