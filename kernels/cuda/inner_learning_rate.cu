#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/simt.h"
#include "kernels/inner_learning_rate.h"

namespace ttt::kernels::cuda {
namespace {

// Rates are fp32 beside activations of bf16 too: a number a token and head, and what the inner loop multiplies with.
constexpr std::int64_t kMaxPartialRows = 256;
constexpr std::int64_t kTokensPerBlock = 64;  // at least, while there are enough

__global__ void rate_forward_kernel(const float* logits, const float* bias, float* rate,
                                    float scale, std::int64_t count, std::int64_t heads) {
  for_each_element(count, [&](std::int64_t i) {
    rate[i] = scale / (1.0F + expf(-(logits[i] + bias[i % heads])));
  });
}

// partial [P, H]: sums of d_logits over the tokens of a block; blockIdx.y is a tile of heads.
__global__ void __launch_bounds__(kWarpLanes* kColumnGroups)
    rate_backward_kernel(const float* rate, const float* d_rate, float* d_logits, float* partial,
                         float inverse_scale, std::int64_t tokens, std::int64_t heads,
                         std::int64_t tokens_per_block) {
  const std::int64_t h = static_cast<std::int64_t>(blockIdx.y) * kWarpLanes + threadIdx.x;
  const std::int64_t begin = blockIdx.x * tokens_per_block;
  const std::int64_t end = begin + tokens_per_block < tokens ? begin + tokens_per_block : tokens;
  const float sum = column_sum(begin, h < heads ? end : begin, [&](std::int64_t n) {
    const std::int64_t i = n * heads + h;
    const float d = d_rate[i] * rate[i] * (1.0F - rate[i] * inverse_scale);
    d_logits[i] = d;
    return d;
  });
  if (threadIdx.y == 0 && h < heads) partial[blockIdx.x * heads + h] = sum;
}

__device__ __forceinline__ float scale_at(const float* offset, std::int64_t i) {
  return 1.0F / static_cast<float>(i + 1) + (offset == nullptr ? 0.0F : offset[i]);
}

__global__ void scale_forward_kernel(const float* offset, float* scale, std::int64_t places) {
  for_each_element(places, [&](std::int64_t i) {
    const float sum = scale_at(offset, i);
    scale[i] = sum < 0.0F ? 0.0F : sum;  // keeps NaN
  });
}

__global__ void scale_backward_kernel(const float* offset, const float* d_scale, float* d_offset,
                                      std::int64_t places) {
  for_each_element(places, [&](std::int64_t i) {
    if (scale_at(offset, i) >= 0.0F) d_offset[i] += d_scale[i];
  });
}

}  // namespace

void inner_learning_rate_forward(TensorView logits, TensorView bias, TensorView rate, double scale,
                                 Stream& stream) {
  launch(rate_forward_kernel, elementwise_shape(logits.numel()), stream, logits.data<float>(),
         bias.data<float>(), rate.data<float>(), static_cast<float>(scale), logits.numel(),
         logits.size(1));
}

void inner_learning_rate_backward(TensorView rate, TensorView d_rate, TensorView d_logits,
                                  TensorView d_bias, double scale, Stream& stream) {
  const std::int64_t tokens = rate.size(0);
  const std::int64_t heads = rate.size(1);
  if (rate.numel() == 0) return;
  const std::int64_t wanted =
      std::min((tokens + kTokensPerBlock - 1) / kTokensPerBlock, kMaxPartialRows);
  const std::int64_t tokens_per_block = (tokens + wanted - 1) / wanted;
  const std::int64_t blocks = (tokens + tokens_per_block - 1) / tokens_per_block;
  const std::int64_t tiles = (heads + kWarpLanes - 1) / kWarpLanes;
  const Tensor partial(Shape{blocks, heads}, DType::kF32);
  launch(rate_backward_kernel,
         {dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(tiles)), column_block()},
         stream, rate.data<float>(), d_rate.data<float>(), d_logits.data<float>(),
         partial.data<float>(), static_cast<float>(1.0 / scale), tokens, heads, tokens_per_block);
  add_column_sums(partial, d_bias, {}, stream);
}

void token_scale_forward(TensorView offset, TensorView scale, Stream& stream) {
  launch(scale_forward_kernel, elementwise_shape(scale.numel()), stream, offset.data<float>(),
         scale.data<float>(), scale.numel());
}

void token_scale_backward(TensorView offset, TensorView d_scale, TensorView d_offset,
                          Stream& stream) {
  launch(scale_backward_kernel, elementwise_shape(offset.numel()), stream, offset.data<float>(),
         d_scale.data<float>(), d_offset.data<float>(), offset.numel());
}

}  // namespace ttt::kernels::cuda
