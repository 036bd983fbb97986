#include "kernels/inner_learning_rate.h"

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/row_blocks.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {

void inner_learning_rate_forward(TensorView logits, TensorView bias, TensorView rate, double scale,
                                 Stream& stream) {
  const auto tokens = logits.size(0);
  const auto heads = logits.size(1);
  expect_shape("logits", logits, {tokens, heads});
  expect_shape("bias", bias, {heads});
  expect_shape("rate", rate, {tokens, heads});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->inner_learning_rate_forward(logits, bias, rate, scale, stream);
  }
  visit_real(logits.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const logits_data = logits.data<T>();
    const T* const bias_data = bias.data<T>();
    T* const rate_data = rate.data<T>();
    const T factor = static_cast<T>(scale);
    for_each_block(tokens, 4 * heads, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t n = begin; n < end; ++n) {
        const T* const in = logits_data + n * heads;
        T* const out = rate_data + n * heads;
#pragma omp simd
        for (std::int64_t h = 0; h < heads; ++h) out[h] = factor * sigmoid(in[h] + bias_data[h]);
      }
    });
  });
}

void inner_learning_rate_backward(TensorView rate, TensorView d_rate, TensorView d_logits,
                                  TensorView d_bias, double scale, Stream& stream) {
  const auto tokens = rate.size(0);
  const auto heads = rate.size(1);
  expect_shape("rate", rate, {tokens, heads});
  expect_shape("d_rate", d_rate, {tokens, heads});
  expect_shape("d_logits", d_logits, {tokens, heads});
  expect_shape("d_bias", d_bias, {heads});
  TTT_CHECK(scale != 0, "a learning rate of scale 0 has no gradient");
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->inner_learning_rate_backward(rate, d_rate, d_logits, d_bias, scale, stream);
  }
  visit_real(rate.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const rate_data = rate.data<T>();
    const T* const d_rate_data = d_rate.data<T>();
    T* const d_logits_data = d_logits.data<T>();
    T* const d_bias_data = d_bias.data<T>();
    const T inverse_scale = static_cast<T>(1.0 / scale);
    RowSums sums(tokens, heads);
    sums.for_each_row([&](std::int64_t n, double* sum) {
      const T* const rate_row = rate_data + n * heads;
      const T* const d_rate_row = d_rate_data + n * heads;
      T* const d_logits_row = d_logits_data + n * heads;
#pragma omp simd
      for (std::int64_t h = 0; h < heads; ++h) {
        const T d = d_rate_row[h] * rate_row[h] * (T{1} - rate_row[h] * inverse_scale);
        d_logits_row[h] = d;
        sum[h] += static_cast<double>(d);
      }
    });
    sums.add_to(d_bias_data, heads);
  });
}

void token_scale_forward(TensorView offset, TensorView scale, Stream& stream) {
  const auto places = scale.size(0);
  expect_shape("scale", scale, {places});
  if (!offset.empty()) expect_shape("offset", offset, {places});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->token_scale_forward(offset, scale, stream);
  }
  visit_real(scale.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const offset_data = offset.empty() ? nullptr : offset.data<T>();
    T* const scale_data = scale.data<T>();
    for (std::int64_t i = 0; i < places; ++i) {
      const T sum = T{1} / static_cast<T>(i + 1) + (offset_data == nullptr ? T{0} : offset_data[i]);
      scale_data[i] = sum < T{0} ? T{0} : sum;  // keeps NaN
    }
  });
}

void token_scale_backward(TensorView offset, TensorView d_scale, TensorView d_offset,
                          Stream& stream) {
  const auto places = offset.size(0);
  expect_shape("offset", offset, {places});
  expect_shape("d_scale", d_scale, {places});
  expect_shape("d_offset", d_offset, {places});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->token_scale_backward(offset, d_scale, d_offset, stream);
  }
  visit_real(offset.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const offset_data = offset.data<T>();
    const T* const d_scale_data = d_scale.data<T>();
    T* const d_offset_data = d_offset.data<T>();
    for (std::int64_t i = 0; i < places; ++i) {
      if (T{1} / static_cast<T>(i + 1) + offset_data[i] >= T{0})
        d_offset_data[i] += d_scale_data[i];
    }
  });
}

}  // namespace ttt::kernels
