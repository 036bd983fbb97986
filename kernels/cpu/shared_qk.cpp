#include "kernels/shared_qk.h"

#include <vector>

#include "kernels/cpu/conv_rows.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/rotation.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

struct Sizes {
  std::int64_t batch, tokens, heads, head_dim, window;

  [[nodiscard]] std::int64_t rows() const { return batch * tokens; }
  [[nodiscard]] std::int64_t channels() const { return heads * head_dim; }
};

Sizes checked_sizes(TensorView p, TensorView w_q, const std::optional<RopeOptions>& rope) {
  const Sizes size{p.size(0), p.size(1), p.size(2), p.size(3), w_q.size(-1)};
  TTT_CHECK(size.window >= 1, "the window of a convolution is at least 1");
  expect_shape("p", p, {size.batch, size.tokens, size.heads, size.head_dim});
  if (rope) check_rope(*rope, size.head_dim);
  return size;
}

void check_parameters(const Sizes& size, const char* w_name, TensorView w, const char* bias_name,
                      TensorView bias) {
  expect_shape(w_name, w, {size.channels(), 1, size.window});
  expect_shape(bias_name, bias, {size.channels()});
}

template <typename T>
std::optional<Rotation<T>> rotation_of(const Sizes& size, const std::optional<RopeOptions>& rope) {
  if (!rope) return std::nullopt;
  return Rotation<T>(size.tokens, size.head_dim, *rope);
}

// The gradients of the convolution's outputs, q's or k's: d turned back. Rows from the current one to W - 1 behind it are
// held, each turned once in a block of rows.
template <typename T>
class TurnedRows {
 public:
  TurnedRows(const T* d, const Sizes& size, const std::optional<Rotation<T>>& rotation)
      : d_(d),
        size_(size),
        rotation_(rotation),
        held_(rotation ? static_cast<std::size_t>(size.window * size.channels()) : 0) {}

  // Moves on to `row`, the one after the last unless it `is_first`.
  void move_to(std::int64_t row, bool is_first) {
    if (!rotation_) return;
    const std::int64_t t = row % size_.tokens;
    const std::int64_t last = size_.window - 1;
    for (std::int64_t ahead = is_first || t == 0 ? 0 : last; ahead <= last; ++ahead) {
      if (t + ahead >= size_.tokens) return;
      rotation_->turn(d_ + (row + ahead) * size_.channels(), slot(row + ahead), t + ahead,
                      size_.heads, T{-1});
    }
  }

  [[nodiscard]] const T* row(std::int64_t row) {
    return rotation_ ? slot(row) : d_ + row * size_.channels();
  }

 private:
  T* slot(std::int64_t row) { return held_.data() + row % size_.window * size_.channels(); }

  const T* d_;
  const Sizes& size_;
  const std::optional<Rotation<T>>& rotation_;
  std::vector<T> held_;  // [W, C]
};

// d_p_row = the transposed convolution at `row`; sums [W + 1, C] of the weights, then the bias, are added to.
template <typename T>
void backward_row(const Sizes& size, std::int64_t row, TurnedRows<T>& d, const T* p,
                  const T* weights, T* d_p_row, double* sums) {
  const std::int64_t channels = size.channels();
  const std::int64_t t = row % size.tokens;
  const T* const d_row = d.row(row);
  std::fill_n(d_p_row, channels, T{0});
  for (std::int64_t j = 0; j < size.window; ++j) {
    const std::int64_t back = size.window - 1 - j;  // how far weight j looks back
    if (t + back < size.tokens) {
      add_product(weights + j * channels, d.row(row + back), d_p_row, channels);
    }
    if (t < back) continue;
    add_product_to_sum(d_row, p + (row - back) * channels, sums + j * channels, channels);
  }
  add_to_sum(d_row, sums + size.window * channels, channels);
}

}  // namespace

void shared_qk_forward(TensorView p, TensorView w_q, TensorView bias_q, TensorView w_k,
                       TensorView bias_k, TensorView history, TensorView q, TensorView k,
                       TensorView final_history, const std::optional<RopeOptions>& rope,
                       Stream& stream) {
  const Sizes size = checked_sizes(p, w_q, rope);
  const std::int64_t channels = size.channels();
  check_parameters(size, "w_q", w_q, "bias_q", bias_q);
  check_parameters(size, "w_k", w_k, "bias_k", bias_k);
  const Shape history_shape{size.batch, size.window - 1, channels};
  if (!history.empty()) expect_shape("history", history, history_shape);
  expect_shape("q", q, p.shape());
  expect_shape("k", k, p.shape());
  if (!final_history.empty()) expect_shape("final_history", final_history, history_shape);
  TTT_CHECK(p.numel() == 0 || (q.raw() != p.raw() && k.raw() != p.raw()),
            "q and k must not alias p");
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->shared_qk_forward(p, w_q, bias_q, w_k, bias_k, history, q, k, final_history, rope,
                                  stream);
  }
  visit_real(p.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const ConvInput<T> input{p.data<T>(), history.empty() ? nullptr : history.data<T>(),
                             size.tokens, channels, size.window};
    const std::optional<Rotation<T>> rotation = rotation_of<T>(size, rope);
    const Tensor weights_q = transpose_weights(w_q.data<T>(), channels, size.window);
    const Tensor weights_k = transpose_weights(w_k.data<T>(), channels, size.window);
    const auto write = [&](std::int64_t row, const Tensor& weights, TensorView bias, TensorView y) {
      T* const y_row = y.data<T>() + row * channels;
      const std::int64_t t = row % size.tokens;
      input.convolve(row / size.tokens, t, weights.data<T>(), bias.data<T>(), y_row);
      if (rotation) rotation->turn(y_row, y_row, t, size.heads, T{1});
    };
    for_each_block(size.rows(), 2 * channels * size.window,
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t row = begin; row < end; ++row) {
                       write(row, weights_q, bias_q, q);
                       write(row, weights_k, bias_k, k);
                     }
                   });
    if (!final_history.empty()) input.carry_history(size.batch, final_history.data<T>());
  });
}

void shared_qk_backward(TensorView p, TensorView w_q, TensorView w_k, TensorView d_q,
                        TensorView d_k, TensorView d_p, TensorView d_w_q, TensorView d_bias_q,
                        TensorView d_w_k, TensorView d_bias_k,
                        const std::optional<RopeOptions>& rope, Stream& stream) {
  const Sizes size = checked_sizes(p, w_q, rope);
  const std::int64_t channels = size.channels();
  expect_shape("w_q", w_q, {channels, 1, size.window});
  expect_shape("w_k", w_k, {channels, 1, size.window});
  expect_shape("d_q", d_q, p.shape());
  expect_shape("d_k", d_k, p.shape());
  expect_shape("d_p", d_p, p.shape());
  check_parameters(size, "d_w_q", d_w_q, "d_bias_q", d_bias_q);
  check_parameters(size, "d_w_k", d_w_k, "d_bias_k", d_bias_k);
  TTT_CHECK(p.numel() == 0 || (d_p.raw() != d_q.raw() && d_p.raw() != d_k.raw()),
            "d_p must not alias d_q or d_k");
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->shared_qk_backward(p, w_q, w_k, d_q, d_k, d_p, d_w_q, d_bias_q, d_w_k, d_bias_k,
                                   rope, stream);
  }
  visit_real(p.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const p_data = p.data<T>();
    T* const d_p_data = d_p.data<T>();
    const std::optional<Rotation<T>> rotation = rotation_of<T>(size, rope);
    const Tensor weights_q = transpose_weights(w_q.data<T>(), channels, size.window);
    const Tensor weights_k = transpose_weights(w_k.data<T>(), channels, size.window);
    const std::int64_t width = (size.window + 1) * channels;  // of the sums of q, then of k
    RowSums sums(size.rows(), 2 * width);
    sums.for_each_block([&](std::int64_t begin, std::int64_t end, double* sum) {
      TurnedRows<T> of_q(d_q.data<T>(), size, rotation), of_k(d_k.data<T>(), size, rotation);
      std::vector<T> through_k(static_cast<std::size_t>(channels));
      for (std::int64_t row = begin; row < end; ++row) {
        of_q.move_to(row, row == begin);
        of_k.move_to(row, row == begin);
        T* const d_p_row = d_p_data + row * channels;
        backward_row(size, row, of_q, p_data, weights_q.data<T>(), d_p_row, sum);
        backward_row(size, row, of_k, p_data, weights_k.data<T>(), through_k.data(), sum + width);
        add_row(through_k.data(), d_p_row, channels);
      }
    });
    add_conv_sums<T>(sums, 0, d_w_q, d_bias_q);
    add_conv_sums<T>(sums, width, d_w_k, d_bias_k);
  });
}

}  // namespace ttt::kernels
