#include "kernels/norm_conv.h"

#include <vector>

#include "kernels/cpu/conv_rows.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/norm_rows.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

struct Sizes {
  std::int64_t batch, tokens, channels, window;

  [[nodiscard]] std::int64_t rows() const { return batch * tokens; }
};

Sizes checked_sizes(TensorView x, TensorView norm_w, TensorView w) {
  const Sizes size{x.size(0), x.size(1), x.size(2), w.size(-1)};
  TTT_CHECK(size.window >= 1, "the window of a convolution is at least 1");
  expect_shape("x", x, {size.batch, size.tokens, size.channels});
  expect_shape("norm_w", norm_w, {size.channels});
  expect_shape("w", w, {size.channels, 1, size.window});
  return size;
}

// The normed inputs of the current row and the W - 1 before it; each is normed once in a block of rows.
template <typename T>
class NormedRows {
 public:
  NormedRows(const ConvInput<T>& input, const T* w, double epsilon)
      : input_(input),
        w_(w),
        epsilon_(epsilon),
        held_(static_cast<std::size_t>(input.window * input.channels)),
        rstd_(static_cast<std::size_t>(input.window)) {}

  // Moves on to token t of sequence b, the one after the last unless it `is_first`.
  void move_to(std::int64_t b, std::int64_t t, bool is_first) {
    const std::int64_t before = input_.window - 1;
    for (std::int64_t back = is_first || t == 0 ? before : 0; back >= 0; --back) {
      const T* const from = input_.row(b, t - back);
      if (from == nullptr) continue;
      rstd_[slot(t - back)] = rms_norm_row(from, w_, held(t - back), input_.channels, epsilon_);
    }
    b_ = b;
  }

  /// Null where the input is zeros.
  [[nodiscard]] const T* row(std::int64_t t) {
    return input_.row(b_, t) == nullptr ? nullptr : held(t);
  }
  [[nodiscard]] T rstd(std::int64_t t) const { return rstd_[slot(t)]; }

 private:
  [[nodiscard]] std::size_t slot(std::int64_t t) const {  // t >= -(W - 1)
    return static_cast<std::size_t>((t + input_.window) % input_.window);
  }
  T* held(std::int64_t t) { return held_.data() + slot(t) * input_.channels; }

  const ConvInput<T>& input_;
  const T* w_;
  double epsilon_;
  std::int64_t b_ = 0;
  std::vector<T> held_;  // [W, C]
  std::vector<T> rstd_;  // [W]
};

}  // namespace

void norm_conv_forward(TensorView x, TensorView norm_w, TensorView w, TensorView bias,
                       TensorView history, TensorView y, TensorView final_history, double epsilon,
                       Stream& stream) {
  const Sizes size = checked_sizes(x, norm_w, w);
  const Shape history_shape{size.batch, size.window - 1, size.channels};
  expect_shape("bias", bias, {size.channels});
  if (!history.empty()) expect_shape("history", history, history_shape);
  expect_shape("y", y, x.shape());
  if (!final_history.empty()) expect_shape("final_history", final_history, history_shape);
  TTT_CHECK(x.numel() == 0 || y.raw() != x.raw(), "y must not alias x");
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->norm_conv_forward(x, norm_w, w, bias, history, y, final_history, epsilon, stream);
  }
  visit_real(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t channels = size.channels;
    const ConvInput<T> input{x.data<T>(), history.empty() ? nullptr : history.data<T>(),
                             size.tokens, channels, size.window};
    const Tensor weights = transpose_weights(w.data<T>(), channels, size.window);
    // Blocks in which the rows that are normed twice, those before it, are few.
    constexpr std::int64_t kRows = 32;
    const auto run_block = [&](std::int64_t begin, std::int64_t end) {
      NormedRows<T> normed(input, norm_w.data<T>(), epsilon);
      for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t t = row % size.tokens;
        T* const y_row = y.data<T>() + row * channels;
        normed.move_to(row / size.tokens, t, row == begin);
        input.convolve(t, weights.data<T>(), bias.data<T>(), y_row,
                       [&](std::int64_t from) { return normed.row(from); });
        add_row(x.data<T>() + row * channels, y_row, channels);
      }
    };
    for_each_block((size.rows() + kRows - 1) / kRows, kRows * channels * size.window,
                   [&](std::int64_t begin, std::int64_t end) {
                     run_block(begin * kRows, std::min(size.rows(), end * kRows));
                   });
    if (!final_history.empty()) input.carry_history(size.batch, final_history.data<T>());
  });
}

void norm_conv_backward(TensorView x, TensorView norm_w, TensorView w, TensorView d_y,
                        TensorView d_x, TensorView d_norm_w, TensorView d_w, TensorView d_bias,
                        double epsilon, Stream& stream) {
  const Sizes size = checked_sizes(x, norm_w, w);
  expect_shape("d_y", d_y, x.shape());
  expect_shape("d_x", d_x, x.shape());
  expect_shape("d_norm_w", d_norm_w, {size.channels});
  expect_shape("d_w", d_w, w.shape());
  expect_shape("d_bias", d_bias, {size.channels});
  TTT_CHECK(x.numel() == 0 || d_x.raw() != d_y.raw(), "d_x must not alias d_y");
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->norm_conv_backward(x, norm_w, w, d_y, d_x, d_norm_w, d_w, d_bias, epsilon, stream);
  }
  visit_real(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t channels = size.channels;
    const ConvInput<T> input{x.data<T>(), nullptr, size.tokens, channels, size.window};
    const Tensor weights = transpose_weights(w.data<T>(), channels, size.window);
    const std::int64_t of_conv = (size.window + 1) * channels;
    RowSums sums(size.rows(), of_conv + channels);  // of the weights and the bias, then of norm_w
    sums.for_each_block([&](std::int64_t begin, std::int64_t end, double* sum) {
      NormedRows<T> normed(input, norm_w.data<T>(), epsilon);
      std::vector<T> d_normed(static_cast<std::size_t>(channels));
      for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t t = row % size.tokens;
        const std::int64_t at = row * channels;
        const T* const d_row = d_y.data<T>() + at;
        normed.move_to(row / size.tokens, t, row == begin);
        std::ranges::fill(d_normed, T{0});
        for (std::int64_t j = 0; j < size.window; ++j) {
          const std::int64_t back = size.window - 1 - j;  // how far weight j looks back
          if (t + back < size.tokens) {
            add_product(weights.data<T>() + j * channels, d_row + back * channels, d_normed.data(),
                        channels);
          }
          if (t < back) continue;
          add_product_to_sum(d_row, normed.row(t - back), sum + j * channels, channels);
        }
        add_to_sum(d_row, sum + size.window * channels, channels);
        rms_backward_row<T, true>(x.data<T>() + at, norm_w.data<T>(), normed.rstd(t),
                                  d_normed.data(), d_row, d_x.data<T>() + at, sum + of_conv,
                                  channels);
      }
    });
    add_conv_sums<T>(sums, 0, d_w, d_bias);
    sums.add_to(d_norm_w.data<T>(), channels, of_conv);
  });
}

}  // namespace ttt::kernels
