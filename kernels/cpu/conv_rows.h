#pragma once
// Rows of depthwise causal convolutions on the CPU (kernels/causal_conv.h, kernels/shared_qk.h).

#include <algorithm>

#include "kernels/cpu/row_blocks.h"

namespace ttt::kernels {

/// w [C, 1, W] as [W, C]: the loops run over channels.
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

/// y += x.
template <typename T>
void add_row(const T* x, T* y, std::int64_t channels) {
#pragma omp simd
  for (std::int64_t c = 0; c < channels; ++c) y[c] += x[c];
}

/// sum += a * b, and sum += a.
template <typename T>
void add_product_to_sum(const T* a, const T* b, double* sum, std::int64_t channels) {
#pragma omp simd
  for (std::int64_t c = 0; c < channels; ++c) sum[c] += static_cast<double>(a[c] * b[c]);
}
template <typename T>
void add_to_sum(const T* a, double* sum, std::int64_t channels) {
#pragma omp simd
  for (std::int64_t c = 0; c < channels; ++c) sum[c] += static_cast<double>(a[c]);
}

/// What a convolution reads: x [B, T, C] and, before it, history [B, W-1, C], null for zeros.
template <typename T>
struct ConvInput {
  const T* x;
  const T* history;
  std::int64_t tokens, channels, window;

  /// Input t of sequence b, t >= -(W - 1); null where it is zeros.
  [[nodiscard]] const T* row(std::int64_t b, std::int64_t t) const {
    if (t >= 0) return x + (b * tokens + t) * channels;
    if (history == nullptr) return nullptr;
    return history + ((b + 1) * (window - 1) + t) * channels;
  }

  /// y = bias + the convolution at token t of a sequence whose input t is row_at(t); `weights` is [W, C].
  template <typename F>
  void convolve(std::int64_t t, const T* weights, const T* bias, T* y, F&& row_at) const {
    std::copy_n(bias, channels, y);
    for (std::int64_t j = 0; j < window; ++j) {
      const T* const from = row_at(t - (window - 1) + j);
      if (from != nullptr) add_product(weights + j * channels, from, y, channels);
    }
  }

  void convolve(std::int64_t b, std::int64_t t, const T* weights, const T* bias, T* y) const {
    convolve(t, weights, bias, y, [&](std::int64_t from) { return row(b, from); });
  }

  /// The last inputs of `batch` sequences. Both histories may be the same memory: entry i comes from entry i + T or from
  /// x, so going up never reads what was written (T = 0 copies in place).
  void carry_history(std::int64_t batch, T* final_history) const {
    const std::int64_t before = window - 1;
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t i = 0; i < before; ++i) {
        const T* const from = row(b, tokens - before + i);
        T* const out = final_history + (b * before + i) * channels;
        if (from == nullptr) {
          std::fill_n(out, channels, T{0});
        } else if (from != out) {
          std::copy_n(from, channels, out);
        }
      }
    }
  }
};

/// Adds the columns of `sums` from `first` on, those of [W, C] and then [C], to d_w [C, 1, W] and d_bias [C].
template <typename T>
void add_conv_sums(const RowSums& sums, std::int64_t first, TensorView d_w, TensorView d_bias) {
  const std::int64_t channels = d_w.size(0);
  const std::int64_t window = d_w.size(-1);
  Tensor by_weight = Tensor::zeros(Shape{window, channels}, kDType<T>);
  T* const columns = by_weight.data<T>();
  sums.add_to(columns, window * channels, first);
  T* const d_w_data = d_w.data<T>();
  for (std::int64_t c = 0; c < channels; ++c) {
    for (std::int64_t j = 0; j < window; ++j) d_w_data[c * window + j] += columns[j * channels + c];
  }
  sums.add_to(d_bias.data<T>(), channels, first + window * channels);
}

}  // namespace ttt::kernels
