#pragma once
// Calls the TTT kernels on the tensors of ttt_cases.h.

#include <cstdint>
#include <vector>

#include "core/base/tensor.h"
#include "kernels/ttt.h"
#include "tests/kernels/ttt_cases.h"

namespace ttt::test {

/// `values` under `shape` as element type T; an empty vector gives an empty tensor.
template <typename T>
Tensor tensor_of(const std::vector<double>& values, const Shape& shape) {
  if (values.empty()) return {};
  Tensor result(shape, kDType<T>);
  EXPECT_EQ(result.numel(), static_cast<std::int64_t>(values.size()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    result.template data<T>()[i] = static_cast<T>(values[i]);
  }
  return result;
}

template <typename T>
std::vector<T> values_of(const Tensor& tensor) {
  if (tensor.empty()) return {};
  const auto span = tensor.template span<T>();
  return {span.begin(), span.end()};
}

/// The fast weights as tensors.
template <typename T>
struct StateTensors {
  Tensor w1, b1, w2, b2;

  StateTensors() = default;
  StateTensors(const TttCase& c, const TttWeights<double>& weights) {
    const std::int64_t b = c.sizes.batch;
    const std::int64_t h = c.sizes.heads;
    const std::int64_t f = c.sizes.features;
    const std::int64_t d = c.options.model == InnerModel::kMlp ? c.sizes.hidden : f;
    w1 = tensor_of<T>(weights.w1, {b, h, f, d});
    b1 = tensor_of<T>(weights.b1, {b, h, 1, d});
    w2 = tensor_of<T>(weights.w2, {b, h, d, f});
    b2 = tensor_of<T>(weights.b2, {b, h, 1, f});
  }

  [[nodiscard]] kernels::TttState views() const { return {w1, b1, w2, b2}; }
  [[nodiscard]] TttWeights<T> values() const {
    return {values_of<T>(w1), values_of<T>(b1), values_of<T>(w2), values_of<T>(b2)};
  }
};

/// A case's inputs as tensors.
template <typename T>
struct InputTensors {
  Tensor q, k, v, token_lr, token_scale, norm_weight, norm_bias;

  InputTensors(const TttCase& c, const TttTensors<double>& x) {
    const TttSizes& s = c.sizes;
    const Shape rows{s.batch, s.tokens, s.heads, s.features};
    q = tensor_of<T>(x.q, rows);
    k = tensor_of<T>(x.k, rows);
    v = tensor_of<T>(x.v, rows);
    token_lr = tensor_of<T>(x.token_lr, {s.batch, s.tokens, s.heads});
    token_scale = tensor_of<T>(x.token_scale, {c.options.mini_batch_size});
    norm_weight = tensor_of<T>(x.norm_weight, {s.heads, s.features});
    norm_bias = tensor_of<T>(x.norm_bias, {s.heads, s.features});
  }

  [[nodiscard]] kernels::TttInputs views() const {
    return {q, k, v, token_lr, token_scale, norm_weight, norm_bias};
  }
};

inline TttWeights<double> zeros_like(const TttWeights<double>& weights) {
  const auto zero = [](const std::vector<double>& x) { return std::vector<double>(x.size()); };
  return {zero(weights.w1), zero(weights.b1), zero(weights.w2), zero(weights.b2)};
}

template <typename T>
TttOutputs<T> cpu_forward(const TttCase& c, const TttTensors<double>& x,
                          kernels::TttSaved* saved = nullptr) {
  const InputTensors<T> inputs(c, x);
  const StateTensors<T> initial(c, x.initial);
  const StateTensors<T> final_state(c, zeros_like(x.initial));
  Tensor out(inputs.q.shape(), kDType<T>);
  Stream stream;
  kernels::ttt_forward(inputs.views(), c.options, initial.views(), out, final_state.views(), saved,
                       stream);
  return {values_of<T>(out), final_state.values()};
}

/// Gradients; the tensors that backward adds to start from zero. `d_final` may be empty.
template <typename T>
TttTensors<T> cpu_backward(const TttCase& c, const TttTensors<double>& x, const TttLoss& loss) {
  const InputTensors<T> inputs(c, x);
  const StateTensors<T> initial(c, x.initial);
  const StateTensors<T> d_final(c, loss.d_final);
  const StateTensors<T> d_initial(c, zeros_like(x.initial));
  kernels::TttSaved saved;
  cpu_forward<T>(c, x, &saved);
  const auto like = [](const Tensor& tensor) {
    return tensor.empty() ? Tensor() : Tensor::zeros(tensor.shape(), kDType<T>);
  };
  const Tensor d_q = like(inputs.q);
  const Tensor d_k = like(inputs.k);
  const Tensor d_v = like(inputs.v);
  const Tensor d_token_lr = like(inputs.token_lr);
  const Tensor d_token_scale = like(inputs.token_scale);
  const Tensor d_norm_weight = like(inputs.norm_weight);
  const Tensor d_norm_bias = like(inputs.norm_bias);
  const Tensor d_out = tensor_of<T>(loss.d_out, inputs.q.shape());
  Stream stream;
  kernels::ttt_backward(inputs.views(), c.options, initial.views(), saved, d_out, d_final.views(),
                        {d_q, d_k, d_v, d_token_lr, d_token_scale, d_norm_weight, d_norm_bias},
                        d_initial.views(), stream);
  return {values_of<T>(d_q),         values_of<T>(d_k),           values_of<T>(d_v),
          values_of<T>(d_token_lr),  values_of<T>(d_token_scale), values_of<T>(d_norm_weight),
          values_of<T>(d_norm_bias), d_initial.values()};
}

}  // namespace ttt::test
