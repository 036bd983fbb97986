#include "kernels/causal_conv.h"

#include <algorithm>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/row_blocks.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

// Weights as [W, C]: the loops run over channels.
template <typename T>
Tensor transpose_weights(const T* w, std::int64_t channels, std::int64_t window) {
  Tensor result(Shape{window, channels}, kDType<T>);
  T* const out = result.data<T>();
  for (std::int64_t c = 0; c < channels; ++c) {
    for (std::int64_t j = 0; j < window; ++j) out[j * channels + c] = w[c * window + j];
  }
  return result;
}

template <typename T>
void add_product(const T* w, const T* x, T* y, std::int64_t channels) {
#pragma omp simd
  for (std::int64_t c = 0; c < channels; ++c) y[c] += w[c] * x[c];
}

// Row b of final_history from row b of history (null: zeros) and of x. Both histories may be the same memory: entry i
// comes from entry i + T or from x, so going up never reads what was written (T = 0 copies in place).
template <typename T>
void carry_history(const T* x, const T* history, T* final_history, std::int64_t tokens,
                   std::int64_t channels, std::int64_t before) {
  for (std::int64_t i = 0; i < before; ++i) {
    const std::int64_t from = tokens - before + i;
    T* const out = final_history + i * channels;
    if (from >= 0) {
      std::copy_n(x + from * channels, channels, out);
    } else if (history == nullptr) {
      std::fill_n(out, channels, T{0});
    } else if (tokens > 0 || history != final_history) {
      std::copy_n(history + (before + from) * channels, channels, out);
    }
  }
}

}  // namespace

void causal_conv_forward(TensorView x, TensorView w, TensorView bias, TensorView history,
                         TensorView residual, TensorView y, TensorView final_history,
                         Stream& stream) {
  const auto batch = x.size(0);
  const auto tokens = x.size(1);
  const auto channels = x.size(2);
  const auto window = w.size(-1);
  const auto before = window - 1;
  TTT_CHECK(window >= 1, "the window of a convolution is at least 1");
  expect_shape("x", x, {batch, tokens, channels});
  expect_shape("w", w, {channels, 1, window});
  expect_shape("bias", bias, {channels});
  if (!history.empty()) expect_shape("history", history, {batch, before, channels});
  if (!residual.empty()) expect_shape("residual", residual, {batch, tokens, channels});
  expect_shape("y", y, {batch, tokens, channels});
  if (!final_history.empty()) {
    expect_shape("final_history", final_history, {batch, before, channels});
  }
  TTT_CHECK(x.numel() == 0 || (y.raw() != x.raw() && y.raw() != residual.raw()),
            "y must not alias x or residual");
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->causal_conv_forward(x, w, bias, history, residual, y, final_history, stream);
  }
  visit_real(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const x_data = x.data<T>();
    const T* const bias_data = bias.data<T>();
    const T* const history_data = history.empty() ? nullptr : history.data<T>();
    const T* const residual_data = residual.empty() ? nullptr : residual.data<T>();
    T* const y_data = y.data<T>();
    T* const final_data = final_history.empty() ? nullptr : final_history.data<T>();
    const Tensor weights = transpose_weights(w.data<T>(), channels, window);
    const T* const w_data = weights.data<T>();
    for_each_block(batch * tokens, channels * window, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const auto b = row / tokens;
        T* const y_row = y_data + row * channels;
        std::copy_n(bias_data, channels, y_row);
        for (std::int64_t j = 0; j < window; ++j) {
          const auto from = row % tokens - before + j;
          const T* const w_row = w_data + j * channels;
          if (from >= 0) {
            add_product(w_row, x_data + (b * tokens + from) * channels, y_row, channels);
          } else if (history_data != nullptr) {
            const T* const past = history_data + (b * before + before + from) * channels;
            add_product(w_row, past, y_row, channels);
          }
        }
        if (residual_data == nullptr) continue;
        const T* const residual_row = residual_data + row * channels;
#pragma omp simd
        for (std::int64_t c = 0; c < channels; ++c) y_row[c] += residual_row[c];
      }
    });
    if (final_data == nullptr) return;
    for (std::int64_t b = 0; b < batch; ++b) {
      const auto at = b * before * channels;
      carry_history(x_data + b * tokens * channels,
                    history_data == nullptr ? nullptr : history_data + at, final_data + at, tokens,
                    channels, before);
    }
  });
}

void causal_conv_backward(TensorView x, TensorView w, TensorView d_y, TensorView d_beside,
                          TensorView d_x, TensorView d_w, TensorView d_bias, Stream& stream) {
  const auto batch = x.size(0);
  const auto tokens = x.size(1);
  const auto channels = x.size(2);
  const auto window = w.size(-1);
  const auto before = window - 1;
  TTT_CHECK(window >= 1, "the window of a convolution is at least 1");
  expect_shape("x", x, {batch, tokens, channels});
  expect_shape("w", w, {channels, 1, window});
  expect_shape("d_y", d_y, {batch, tokens, channels});
  if (!d_beside.empty()) expect_shape("d_beside", d_beside, {batch, tokens, channels});
  expect_shape("d_x", d_x, {batch, tokens, channels});
  expect_shape("d_w", d_w, {channels, 1, window});
  expect_shape("d_bias", d_bias, {channels});
  TTT_CHECK(x.numel() == 0 || (d_x.raw() != d_y.raw() && d_x.raw() != d_beside.raw()),
            "d_x must not alias d_y or d_beside");
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->causal_conv_backward(x, w, d_y, d_beside, d_x, d_w, d_bias, stream);
  }
  visit_real(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const x_data = x.data<T>();
    const T* const d_y_data = d_y.data<T>();
    const T* const beside_data = d_beside.empty() ? nullptr : d_beside.data<T>();
    T* const d_x_data = d_x.data<T>();
    T* const d_w_data = d_w.data<T>();
    T* const d_bias_data = d_bias.data<T>();
    const Tensor weights = transpose_weights(w.data<T>(), channels, window);
    const T* const w_data = weights.data<T>();
    // Sums are [W + 1, C]: the weights' columns, then the bias.
    RowSums sums(batch * tokens, (window + 1) * channels);
    sums.for_each_row([&](std::int64_t row, double* sum) {
      const auto t = row % tokens;
      const T* const d_row = d_y_data + row * channels;
      T* const d_x_row = d_x_data + row * channels;
      std::fill_n(d_x_row, channels, T{0});
      for (std::int64_t j = 0; j < window; ++j) {
        const auto back = before - j;  // how far weight j looks back
        if (t + back < tokens) {
          add_product(w_data + j * channels, d_row + back * channels, d_x_row, channels);
        }
        if (t < back) continue;
        const T* const x_row = x_data + (row - back) * channels;
        double* const sum_w = sum + j * channels;
#pragma omp simd
        for (std::int64_t c = 0; c < channels; ++c) {
          sum_w[c] += static_cast<double>(d_row[c] * x_row[c]);
        }
      }
      double* const sum_bias = sum + window * channels;
#pragma omp simd
      for (std::int64_t c = 0; c < channels; ++c) sum_bias[c] += static_cast<double>(d_row[c]);
      if (beside_data == nullptr) return;
      const T* const beside_row = beside_data + row * channels;
#pragma omp simd
      for (std::int64_t c = 0; c < channels; ++c) d_x_row[c] += beside_row[c];
    });
    Tensor d_w_columns = Tensor::zeros(Shape{window, channels}, kDType<T>);
    T* const columns = d_w_columns.data<T>();
    sums.add_to(columns, window * channels);
    for (std::int64_t c = 0; c < channels; ++c) {
      for (std::int64_t j = 0; j < window; ++j) {
        d_w_data[c * window + j] += columns[j * channels + c];
      }
    }
    sums.add_to(d_bias_data, channels, window * channels);
  });
}

}  // namespace ttt::kernels
