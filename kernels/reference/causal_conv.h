#pragma once
// Definition of kernels/causal_conv.h (equation there). Sizes come first: spans do not know B, T, C and W.

#include <algorithm>
#include <cstdint>
#include <span>

namespace ttt::kernels::reference {

struct CausalConvSizes {
  std::int64_t batch, tokens, channels, window;
};

template <typename T>
void causal_conv_forward(const CausalConvSizes& size,
                         std::span<const T> x,          // [B, T, C]
                         std::span<const T> w,          // [C, 1, W]
                         std::span<const T> bias,       // [C]
                         std::span<const T> history,    // [B, W-1, C]; may be empty (zeros)
                         std::span<const T> residual,   // [B, T, C]; may be empty (zeros)
                         std::span<T> y,                // [B, T, C] out
                         std::span<T> final_history) {  // [B, W-1, C] out; may be empty
  const auto before = size.window - 1;
  // Input of token t; t in [-before, 0) is history.
  const auto input = [&](std::int64_t b, std::int64_t t, std::int64_t c) {
    if (t >= 0) return x[(b * size.tokens + t) * size.channels + c];
    return history.empty() ? T{} : history[(b * before + before + t) * size.channels + c];
  };
  for (std::int64_t b = 0; b < size.batch; ++b) {
    for (std::int64_t t = 0; t < size.tokens; ++t) {
      for (std::int64_t c = 0; c < size.channels; ++c) {
        T sum = bias[c];
        for (std::int64_t j = 0; j < size.window; ++j) {
          sum += w[c * size.window + j] * input(b, t - before + j, c);
        }
        const auto at = (b * size.tokens + t) * size.channels + c;
        y[at] = residual.empty() ? sum : sum + residual[at];
      }
    }
    if (final_history.empty()) continue;
    for (std::int64_t i = 0; i < before; ++i) {
      for (std::int64_t c = 0; c < size.channels; ++c) {
        final_history[(b * before + i) * size.channels + c] = input(b, size.tokens - before + i, c);
      }
    }
  }
}

template <typename T>
void causal_conv_backward(const CausalConvSizes& size,
                          std::span<const T> x,         // [B, T, C]
                          std::span<const T> w,         // [C, 1, W]
                          std::span<const T> d_y,       // [B, T, C]
                          std::span<const T> d_beside,  // [B, T, C]
                          std::span<T> d_x,             // [B, T, C] out
                          std::span<T> d_w,             // [C, 1, W] in-out
                          std::span<T> d_bias) {        // [C] in-out
  std::ranges::copy(d_beside, d_x.begin());
  for (std::int64_t b = 0; b < size.batch; ++b) {
    for (std::int64_t t = 0; t < size.tokens; ++t) {
      for (std::int64_t c = 0; c < size.channels; ++c) {
        const T d = d_y[(b * size.tokens + t) * size.channels + c];
        d_bias[c] += d;
        for (std::int64_t j = 0; j < size.window; ++j) {
          const auto from = t - (size.window - 1) + j;
          if (from < 0) continue;
          const auto at = (b * size.tokens + from) * size.channels + c;
          d_w[c * size.window + j] += d * x[at];
          d_x[at] += d * w[c * size.window + j];
        }
      }
    }
  }
}

}  // namespace ttt::kernels::reference
