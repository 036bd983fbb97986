#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/row_blocks.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {

void decide_update(TensorView squares, TensorView losses, TensorView decision,
                   const UpdateLimits& limits, const AdamWStep& step, Stream& stream) {
  expect_shape("squares", squares, {1});
  if (!losses.empty()) expect_shape("losses", losses, {losses.numel()});
  expect_shape("decision", decision, {kDecisionSize});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->decide_update(squares, losses, decision, limits, step, stream);
  }
  const double norm = std::sqrt(*squares.data<double>());
  double loss = 0;
  if (!losses.empty()) {
    for (const double value : losses.span<double>()) loss += value;
  }
  double* const shared = decision.data<double>();
  const bool is_made =
      std::isfinite(norm) && std::isfinite(loss) && norm <= limits.norm && loss <= limits.loss;
  shared[kIsMade] = is_made ? 1 : 0;
  if (!is_made) return;
  const double t = shared[kNumUpdates] += 1;
  shared[kClipScale] = clip_scale(norm, step.clip_norm);
  shared[kUnbias1] = 1.0 / (1.0 - std::pow(step.beta1, t));
  shared[kUnbias2] = 1.0 / (1.0 - std::pow(step.beta2, t));
}

void adamw(TensorView parameters, TensorView gradients, TensorView m, TensorView v,
           TensorView decision, TensorView rounded, const AdamWStep& step, Stream& stream) {
  const auto count = parameters.size(0);
  expect_shape("parameters", parameters, {count});
  expect_shape("gradients", gradients, {count});
  expect_shape("m", m, {count});
  expect_shape("v", v, {count});
  expect_shape("decision", decision, {kDecisionSize});
  if (!rounded.empty()) expect_shape("rounded", rounded, {count});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->adamw(parameters, gradients, m, v, decision, rounded, step, stream);
  }
  const double* const shared = decision.data<double>();
  if (shared[kIsMade] == 0) return;
  visit_real(parameters.dtype(), [&](auto zero) {
    using T = decltype(zero);
    T* const p_data = parameters.data<T>();
    const T* const g_data = gradients.data<T>();
    T* const m_data = m.data<T>();
    T* const v_data = v.data<T>();
    const T beta1 = static_cast<T>(step.beta1);
    const T beta2 = static_cast<T>(step.beta2);
    const T rest1 = static_cast<T>(1.0 - step.beta1);
    const T rest2 = static_cast<T>(1.0 - step.beta2);
    const T unbias1 = static_cast<T>(shared[kUnbias1]);
    const T unbias2 = static_cast<T>(shared[kUnbias2]);
    const T epsilon = static_cast<T>(step.epsilon);
    const T rate = static_cast<T>(step.learning_rate);
    const T decay = static_cast<T>(step.weight_decay);
    const T grad_scale = static_cast<T>(shared[kClipScale]);
    for_each_block(count, 2, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) {
        const T g = g_data[i] * grad_scale;
        const T mean = beta1 * m_data[i] + rest1 * g;
        const T square = beta2 * v_data[i] + rest2 * (g * g);
        m_data[i] = mean;
        v_data[i] = square;
        const T direction = mean * unbias1 / (std::sqrt(square * unbias2) + epsilon);
        p_data[i] -= rate * (direction + decay * p_data[i]);
      }
    });
  });
  if (!rounded.empty()) copy(parameters, rounded);
}

void block_sums_of_squares(TensorView x, TensorView partial_sums, Stream& stream) {
  const auto count = x.numel();
  const auto num_blocks = (count + kSquaresBlock - 1) / kSquaresBlock;
  expect_shape("partial", partial_sums, {num_blocks});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->block_sums_of_squares(x, partial_sums, stream);
  }
  double* const partial = partial_sums.data<double>();
  visit_real(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const data = x.data<T>();
    for_each_block(num_blocks, kSquaresBlock, [=](std::int64_t begin, std::int64_t end) {
      for (std::int64_t block = begin; block < end; ++block) {
        double sum = 0;
        const auto last = std::min(count, (block + 1) * kSquaresBlock);
#pragma omp simd reduction(+ : sum)
        for (std::int64_t i = block * kSquaresBlock; i < last; ++i) {
          sum += static_cast<double>(data[i]) * static_cast<double>(data[i]);
        }
        partial[block] = sum;
      }
    });
  });
}

void add_up(TensorView partial, TensorView sum, Stream& stream) {
  expect_shape("partial", partial, {partial.numel()});
  expect_shape("sum", sum, {1});
  if (const DeviceOps* ops = device_ops(stream)) return ops->add_up(partial, sum, stream);
  double total = 0;
  for (const double value : partial.span<double>()) total += value;
  *sum.data<double>() = total;
}

void sum_of_squares(TensorView x, TensorView sum, Stream& stream) {
  const Tensor partial({(x.numel() + kSquaresBlock - 1) / kSquaresBlock}, DType::kF64);
  block_sums_of_squares(x, partial, stream);
  add_up(partial, sum, stream);
}

}  // namespace ttt::kernels
