#include "kernels/cpu/few_rows.h"

#include <algorithm>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/row_blocks.h"
#include "kernels/cpu/simd.h"

namespace ttt::kernels::cpu {
namespace {

using simd::kLanes;
using simd::Vec;

template <typename T>
[[gnu::always_inline]] inline Vec<T> load_some(const T* p, std::int64_t count) {
  Vec<T> x{};
  for (std::int64_t i = 0; i < count; ++i) x[i] = p[i];
  return x;
}

// kOutputs rows of W against kRows rows of x: one accumulator an output, whatever the block.
template <typename T, int kRows, int kOutputs>
void multiply_rows(std::int64_t inputs, const T* x, const T* w, T* y, std::int64_t y_stride) {
  Vec<T> sums[kRows][kOutputs]{};
  const std::int64_t whole = inputs / kLanes<T> * kLanes<T>;
  for (std::int64_t i = 0; i < whole; i += kLanes<T>) {
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o) {
      // The next block's line: the hardware's own prefetching stops at every page and row. May point past the end.
      __builtin_prefetch(w + (o + kOutputs) * inputs + i);
      const Vec<T> weight = simd::load_unaligned(w + o * inputs + i);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        sums[r][o] = simd::fma(weight, simd::load_unaligned(x + r * inputs + i), sums[r][o]);
      }
    }
  }
  const std::int64_t rest = inputs - whole;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o) {
      if (rest > 0) {
        sums[r][o] = simd::fma(load_some(w + o * inputs + whole, rest),
                               load_some(x + r * inputs + whole, rest), sums[r][o]);
      }
      y[r * y_stride + o] = simd::sum<T>(sums[r][o]);
    }
  }
}

// All outputs of kRows rows. Accumulators, 4 or 2 outputs a row of x, fit the registers.
template <typename T, int kRows>
void forward_rows(const TensorView& x, const TensorView& w, const TensorView& y) {
  constexpr int kOutputs = kRows <= 4 ? 4 : 2;
  const std::int64_t inputs = w.size(1);
  const std::int64_t outputs = w.size(0);
  const T* const from = x.data<T>();
  const T* const weights = w.data<T>();
  T* const to = y.data<T>();
  const std::int64_t groups = (outputs + kOutputs - 1) / kOutputs;
  kernels::for_each_block(groups, kOutputs * inputs, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t group = begin; group < end; ++group) {
      const std::int64_t first = group * kOutputs;
      if (first + kOutputs <= outputs) {
        multiply_rows<T, kRows, kOutputs>(inputs, from, weights + first * inputs, to + first,
                                          outputs);
        continue;
      }
      for (std::int64_t o = first; o < outputs; ++o) {
        multiply_rows<T, kRows, 1>(inputs, from, weights + o * inputs, to + o, outputs);
      }
    }
  });
}

// The number of rows turned into a template argument.
template <typename T, int kRows = kFewRows>
void forward_dispatch(const TensorView& x, const TensorView& w, const TensorView& y) {
  if constexpr (kRows > 0) {
    if (x.size(0) < kRows) {
      forward_dispatch<T, kRows - 1>(x, w, y);
    } else {
      forward_rows<T, kRows>(x, w, y);
    }
  }
}

}  // namespace

void few_rows_forward(const TensorView& x, const TensorView& w, const TensorView& y) {
  TTT_CHECK(x.size(0) <= kFewRows, "{} rows", x.size(0));
  visit_real(y.dtype(), [&](auto scalar) { forward_dispatch<decltype(scalar)>(x, w, y); });
}

}  // namespace ttt::kernels::cpu
