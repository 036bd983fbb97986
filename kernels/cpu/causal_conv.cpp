#include "kernels/causal_conv.h"

#include "kernels/cpu/conv_rows.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {

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
    const ConvInput<T> input{x.data<T>(), history.empty() ? nullptr : history.data<T>(), tokens,
                             channels, window};
    const T* const bias_data = bias.data<T>();
    const T* const residual_data = residual.empty() ? nullptr : residual.data<T>();
    T* const y_data = y.data<T>();
    const Tensor weights = transpose_weights(w.data<T>(), channels, window);
    const T* const w_data = weights.data<T>();
    for_each_block(batch * tokens, channels * window, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        T* const y_row = y_data + row * channels;
        input.convolve(row / tokens, row % tokens, w_data, bias_data, y_row);
        if (residual_data != nullptr) add_row(residual_data + row * channels, y_row, channels);
      }
    });
    if (!final_history.empty()) input.carry_history(batch, final_history.data<T>());
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
        add_product_to_sum(d_row, x_data + (row - back) * channels, sum + j * channels, channels);
      }
      add_to_sum(d_row, sum + window * channels, channels);
      if (beside_data != nullptr) add_row(beside_data + row * channels, d_x_row, channels);
    });
    add_conv_sums<T>(sums, 0, d_w, d_bias);
  });
}

}  // namespace ttt::kernels
