#include "kernels/non_finite.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/row_blocks.h"
#include "kernels/device_ops.h"
#include "kernels/reference/non_finite.h"

namespace ttt::kernels {

void find_non_finite(TensorView x, std::int64_t begin, TensorView partial_places, Stream& stream) {
  const std::int64_t count = x.numel();
  const std::int64_t num_blocks = (count + kNonFiniteBlock - 1) / kNonFiniteBlock;
  expect_shape("x", x, {count});
  expect_shape("partial", partial_places, {num_blocks});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->find_non_finite(x, begin, partial_places, stream);
  }
  double* const partial = partial_places.data<double>();
  visit_real(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const data = x.data<T>();
    for_each_block(num_blocks, kNonFiniteBlock, [=](std::int64_t first, std::int64_t last) {
      for (std::int64_t block = first; block < last; ++block) {
        const std::int64_t from = block * kNonFiniteBlock;
        const std::int64_t to = std::min(count, from + kNonFiniteBlock);
        // Stays zero unless an element is not finite; without branches the loop runs at memory's speed.
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t i = from; i < to; ++i) sum += data[i] * T{0};
        partial[block] = std::numeric_limits<double>::infinity();
        if (sum == 0) continue;
        const auto place = reference::first_non_finite<T>({data + from, data + to});
        partial[block] = static_cast<double>(begin + from) + place;
      }
    });
  });
}

void smallest(TensorView partial, TensorView result, Stream& stream) {
  expect_shape("partial", partial, {partial.numel()});
  expect_shape("result", result, {1});
  if (const DeviceOps* ops = device_ops(stream)) return ops->smallest(partial, result, stream);
  double least = std::numeric_limits<double>::infinity();
  for (const double place : partial.span<double>()) least = std::min(least, place);
  *result.data<double>() = least;
}

}  // namespace ttt::kernels
