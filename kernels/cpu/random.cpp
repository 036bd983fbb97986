#include "kernels/random.h"

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/row_blocks.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

constexpr std::int64_t kStepsPerNumber = 64;

// values[i] = draw(i).
template <typename Draw>
void draw_all(const TensorView& values, Draw&& draw) {
  visit_real(values.dtype(), [&](auto scalar) {
    using T = decltype(scalar);
    T* const data = values.data<T>();
    for_each_block(values.numel(), kStepsPerNumber, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        data[i] = static_cast<T>(draw(static_cast<std::uint64_t>(i)));
      }
    });
  });
}

}  // namespace

void random_normal(const CounterRng& rng, double deviation, TensorView values, Stream& stream) {
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->random_normal(rng, deviation, values, stream);
  }
  draw_all(values, [&](std::uint64_t i) { return deviation * rng.normal(i); });
}

void random_truncated_normal(const CounterRng& rng, double deviation, TensorView values,
                             Stream& stream) {
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->random_truncated_normal(rng, deviation, values, stream);
  }
  draw_all(values, [&](std::uint64_t i) { return deviation * rng.truncated_normal(i); });
}

}  // namespace ttt::kernels
