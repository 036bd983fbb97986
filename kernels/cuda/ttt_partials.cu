#include "kernels/cuda/ttt_partials.h"

namespace ttt::kernels::cuda::fused {
namespace {

constexpr int kThreads = 32 * kTokens;

// Block 0 adds the parts of d_token_scale, a warp a place, over all pairs: lane by lane and then across the warp. The
// others add those of the norm, a thread an element, over the batch: in index order.
__global__ void __launch_bounds__(kThreads)
    add_partials_kernel(const float* partials, float* d_token_scale, float* d_norm_weight,
                        float* d_norm_bias, int batch, int heads, int parts, int features) {
  const std::int64_t size = kTokens + 2 * features;
  if (blockIdx.x == 0) {
    const Lane at = this_lane();
    float sum = 0;
    const std::int64_t count = static_cast<std::int64_t>(batch) * heads * parts;
    for (std::int64_t part = at.lane; part < count; part += 32) {
      sum += partials[part * size + at.warp];
    }
    for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
    if (at.lane == 0) d_token_scale[at.warp] += sum;
    return;
  }
  const int i = (static_cast<int>(blockIdx.x) - 1) * kThreads + static_cast<int>(threadIdx.x);
  const int head = i / (2 * features);
  if (head >= heads) return;
  const int column = i % (2 * features);
  float sum = 0;
  for (int b = 0; b < batch; ++b) {
    const float* from =
        partials + (static_cast<std::int64_t>(b) * heads + head) * parts * size + kTokens + column;
    for (int part = 0; part < parts; ++part) sum += from[part * size];
  }
  float* const to = column < features ? d_norm_weight + head * features + column
                                      : d_norm_bias + head * features + (column - features);
  *to += sum;
}

}  // namespace

void add_partials(const Tensor& partials, const TttInputGradients& gradients, Stream& stream) {
  const auto batch = static_cast<int>(partials.size(0));
  const auto heads = static_cast<int>(partials.size(1));
  const auto parts = static_cast<int>(partials.size(2));
  const auto features = static_cast<int>(gradients.d_norm_weight.size(1));
  TTT_CHECK(partials.size(3) == partial_size(features), "parts of {} floats for head dim {}",
            partials.size(3), features);
  const int norm_blocks = (heads * 2 * features + kThreads - 1) / kThreads;
  launch(add_partials_kernel, {dim3(static_cast<unsigned>(1 + norm_blocks)), dim3(kThreads)},
         stream, partials.data<float>(), gradients.d_token_scale.data<float>(),
         gradients.d_norm_weight.data<float>(), gradients.d_norm_bias.data<float>(), batch, heads,
         parts, features);
}

}  // namespace ttt::kernels::cuda::fused
