#pragma once
// Definition of kernels/rope.h (equation there).

#include <cmath>
#include <cstdint>
#include <span>

#include "kernels/rope.h"

namespace ttt::kernels::reference {

/// Rotates every pair by `sign` times its angle.
template <typename T>
void rotate_pairs(std::int64_t tokens, std::int64_t heads, std::int64_t head_dim,
                  const RopeOptions& options, double sign,
                  std::span<const T> x,  // [B, T, H, F]
                  std::span<T> y) {      // [B, T, H, F] out
  const auto half = head_dim / 2;
  const bool interleaved = options.pairing == RopePairing::kInterleaved;
  for (std::int64_t row = 0; row < std::ssize(x) / head_dim; ++row) {
    const auto absolute = options.first_position + row / heads % tokens;
    const auto position = options.period == 0 ? absolute : absolute % options.period;
    for (std::int64_t i = 0; i < half; ++i) {
      const double frequency =
          std::pow(options.base, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
      const double angle = sign * static_cast<double>(position) * frequency;
      const auto first = row * head_dim + (interleaved ? 2 * i : i);
      const auto second = row * head_dim + (interleaved ? 2 * i + 1 : i + half);
      const T a = x[first];
      const T b = x[second];
      y[first] = a * std::cos(angle) - b * std::sin(angle);
      y[second] = a * std::sin(angle) + b * std::cos(angle);
    }
  }
}

template <typename T>
void rope_forward(std::int64_t tokens, std::int64_t heads, std::int64_t head_dim,
                  const RopeOptions& options, std::span<const T> x, std::span<T> y) {
  rotate_pairs(tokens, heads, head_dim, options, 1.0, x, y);
}

template <typename T>
void rope_backward(std::int64_t tokens, std::int64_t heads, std::int64_t head_dim,
                   const RopeOptions& options, std::span<const T> d_y, std::span<T> d_x) {
  rotate_pairs(tokens, heads, head_dim, options, -1.0, d_y, d_x);
}

}  // namespace ttt::kernels::reference
