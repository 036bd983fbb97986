#pragma once
// Definition of kernels/embedding.h (equation there).

#include <cstdint>
#include <span>

namespace ttt::kernels::reference {

template <typename T>
void embedding_forward(std::span<const std::int64_t> ids,  // [N]
                       std::span<const T> table,           // [V, C]
                       std::span<T> y,                     // [N, C] out
                       std::int64_t channels) {
  for (std::int64_t n = 0; n < std::ssize(ids); ++n) {
    for (std::int64_t c = 0; c < channels; ++c) {
      y[n * channels + c] = table[ids[n] * channels + c];
    }
  }
}

template <typename T>
void embedding_backward(std::span<const std::int64_t> ids,  // [N]
                        std::span<const T> d_y,             // [N, C]
                        std::span<T> d_table,               // [V, C] in-out
                        std::int64_t channels) {
  for (std::int64_t n = 0; n < std::ssize(ids); ++n) {
    for (std::int64_t c = 0; c < channels; ++c) {
      d_table[ids[n] * channels + c] += d_y[n * channels + c];
    }
  }
}

}  // namespace ttt::kernels::reference
