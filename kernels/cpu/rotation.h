#pragma once
// The rotations of RoPE on the CPU (kernels/rope.h).

#include <algorithm>
#include <cmath>

#include "kernels/cpu/row_blocks.h"
#include "kernels/rope.h"

namespace ttt::kernels {

/// Turns the heads of a sequence's tokens [0, T).
template <typename T>
class Rotation {
 public:
  Rotation(std::int64_t tokens, std::int64_t head_dim, const RopeOptions& options)
      : half_(head_dim / 2),
        pairing_(options.pairing),
        table_(Shape{2, options.period == 0 ? tokens : std::min(tokens, options.period), half_},
               kDType<T>) {
    const std::int64_t positions = table_.size(1);
    T* const cosine = table_.data<T>();
    T* const sine = cosine + positions * half_;
    Tensor frequencies(Shape{half_}, DType::kF64);
    double* const frequency = frequencies.data<double>();
    for (std::int64_t i = 0; i < half_; ++i) {
      frequency[i] = std::pow(options.base, -static_cast<double>(i) / static_cast<double>(half_));
    }
    constexpr std::int64_t kStepsPerAngle = 50;
    for_each_block(positions, half_ * kStepsPerAngle, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t p = begin; p < end; ++p) {
        const std::int64_t unwrapped = options.first_position + p;
        const std::int64_t position = options.period == 0 ? unwrapped : unwrapped % options.period;
        for (std::int64_t i = 0; i < half_; ++i) {
          const double angle = static_cast<double>(position) * frequency[i];
          cosine[p * half_ + i] = static_cast<T>(std::cos(angle));
          sine[p * half_ + i] = static_cast<T>(std::sin(angle));
        }
      }
    });
  }

  /// y [H, F] = x [H, F], the heads of token t, turned by `sign` times their angles; may be the same memory.
  void turn(const T* x, T* y, std::int64_t t, std::int64_t heads, T sign) const {
    const std::int64_t p = t % table_.size(1);
    const T* const cosine = table_.data<T>() + p * half_;
    const T* const sine = cosine + table_.size(1) * half_;
    for (std::int64_t h = 0; h < heads; ++h) {
      turn_head(x + 2 * h * half_, y + 2 * h * half_, cosine, sine, sign);
    }
  }

 private:
  // x and y may be the same memory: a pair is read, then written.
  void turn_head(const T* x, T* y, const T* cosine, const T* sine, T sign) const {
    const std::int64_t half = half_;
    // NOLINTNEXTLINE(bugprone-branch-clone): the indices differ
    if (pairing_ == RopePairing::kHalves) {
#pragma omp simd
      for (std::int64_t i = 0; i < half; ++i) {
        const T a = x[i];
        const T b = x[half + i];
        const T s = sign * sine[i];
        y[i] = a * cosine[i] - b * s;
        y[half + i] = a * s + b * cosine[i];
      }
    } else {
#pragma omp simd
      for (std::int64_t i = 0; i < half; ++i) {
        const T a = x[2 * i];
        const T b = x[2 * i + 1];
        const T s = sign * sine[i];
        y[2 * i] = a * cosine[i] - b * s;
        y[2 * i + 1] = a * s + b * cosine[i];
      }
    }
  }

  std::int64_t half_;
  RopePairing pairing_;
  // [2, P, F/2]: cosines and sines of the first P tokens, after which positions repeat.
  Tensor table_;
};

inline void check_rope(const RopeOptions& options, std::int64_t head_dim) {
  TTT_CHECK(head_dim % 2 == 0, "rotary embedding needs an even head dim, not {}", head_dim);
  TTT_CHECK(options.period >= 0 && options.first_position >= 0,
            "rotary embedding with period {} from position {}: neither may be negative",
            options.period, options.first_position);
}

}  // namespace ttt::kernels
