#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/simt.h"
#include "kernels/random.h"

namespace ttt::kernels::cuda {
namespace {

// As core/base/rng.cpp has them; only log and cos may differ from the host's, in the last bit of a double.
__device__ __forceinline__ double normal(const CounterRng& rng, std::uint64_t index,
                                         std::uint32_t lane) {
  const PolarDraw draw = polar_draw(rng.block(index, lane));
  return ::sqrt(-2.0 * ::log(draw.u)) * ::cos(draw.angle);
}

__device__ __forceinline__ double truncated_normal(const CounterRng& rng, std::uint64_t index) {
  for (std::uint32_t lane = 1;; ++lane) {
    const double value = normal(rng, index, lane);
    if (::fabs(value) <= 2.0) return value / kTruncatedDeviation;
  }
}

template <bool kIsTruncated>
__global__ void __launch_bounds__(256)
    random_kernel(CounterRng rng, double deviation, float* values, std::int64_t count) {
  for_each_element(count, [&](std::int64_t i) {
    const auto index = static_cast<std::uint64_t>(i);
    const double value = kIsTruncated ? truncated_normal(rng, index) : normal(rng, index, 0);
    values[i] = static_cast<float>(deviation * value);
  });
}

}  // namespace

void random_normal(const CounterRng& rng, double deviation, TensorView values, Stream& stream) {
  launch(random_kernel<false>, elementwise_shape(values.numel()), stream, rng, deviation,
         values.data<float>(), values.numel());
}

void random_truncated_normal(const CounterRng& rng, double deviation, TensorView values,
                             Stream& stream) {
  launch(random_kernel<true>, elementwise_shape(values.numel()), stream, rng, deviation,
         values.data<float>(), values.numel());
}

}  // namespace ttt::kernels::cuda
