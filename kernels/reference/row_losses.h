#pragma once
// Definition of kernels/row_losses.h (equation there).

#include <span>

namespace ttt::kernels::reference {

template <typename T>
void row_losses(std::span<const T> token_weight,  // [B, T]
                std::span<const T> nll,           // [B, T]
                std::span<T> losses) {            // [B] out
  const std::size_t tokens = losses.empty() ? 0 : nll.size() / losses.size();
  for (std::size_t b = 0; b < losses.size(); ++b) {
    T sum{};
    for (std::size_t t = b * tokens; t < (b + 1) * tokens; ++t) sum += token_weight[t] * nll[t];
    losses[b] = sum;
  }
}

}  // namespace ttt::kernels::reference
