#pragma once
// Calls the TTT kernels on the tensors of ttt_cases.h, on the CPU or, with TTT_TEST_CUDA, on test::stream()'s device.

#include <cstdint>
#include <vector>

#include "core/base/tensor.h"
#include "kernels/ttt.h"
#include "tests/kernels/ttt_cases.h"
#include "tests/support/kernel_check.h"

namespace ttt::test {

/// `values` under `shape` as element type T; an empty vector gives an empty tensor.
template <typename T>
Tensor tensor_or_empty(const std::vector<double>& values, const Shape& shape) {
  return values.empty() ? Tensor() : tensor_of<T>(shape, values);
}

/// The elements; those of BF16 tensors as float.
template <typename T>
std::vector<ParameterOf<T>> elements_of(const Tensor& tensor) {
  std::vector<ParameterOf<T>> elements;
  if (tensor.empty()) return elements;
  for (const T value : tensor.template span<T>()) {
    elements.push_back(static_cast<ParameterOf<T>>(value));
  }
  return elements;
}

/// What is left of activations when they are stored as T.
template <typename T>
std::vector<double> rounded_to(const std::vector<double>& values) {
  return values_of<T>(tensor_of<T>({static_cast<std::int64_t>(values.size())}, values));
}
template <typename T>
TttTensors<double> rounded_to(TttTensors<double> x) {
  for (auto* values : {&x.q, &x.k, &x.v}) *values = rounded_to<T>(*values);
  return x;
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
    w1 = tensor_or_empty<T>(weights.w1, {b, h, f, d});
    b1 = tensor_or_empty<T>(weights.b1, {b, h, 1, d});
    w2 = tensor_or_empty<T>(weights.w2, {b, h, d, f});
    b2 = tensor_or_empty<T>(weights.b2, {b, h, 1, f});
  }

  [[nodiscard]] kernels::TttState views() const { return {w1, b1, w2, b2}; }
  [[nodiscard]] TttWeights<T> values() const {
    return {elements_of<T>(w1), elements_of<T>(b1), elements_of<T>(w2), elements_of<T>(b2)};
  }
};

/// A case's inputs as tensors; T is the element type of activations.
template <typename T>
struct InputTensors {
  Tensor q, k, v, token_lr, token_scale, norm_weight, norm_bias;

  InputTensors(const TttCase& c, const TttTensors<double>& x) {
    const TttSizes& s = c.sizes;
    const Shape rows{s.batch, s.tokens, s.heads, s.features};
    q = tensor_of<T>(rows, x.q);
    k = tensor_of<T>(rows, x.k);
    v = tensor_of<T>(rows, x.v);
    using P = ParameterOf<T>;
    token_lr = tensor_or_empty<P>(x.token_lr, {s.batch, s.tokens, s.heads});
    token_scale = tensor_or_empty<P>(x.token_scale, {c.options.mini_batch_size});
    norm_weight = tensor_or_empty<P>(x.norm_weight, {s.heads, s.features});
    norm_bias = tensor_or_empty<P>(x.norm_bias, {s.heads, s.features});
  }

  [[nodiscard]] kernels::TttInputs views() const {
    return {q, k, v, token_lr, token_scale, norm_weight, norm_bias};
  }
};

inline TttWeights<double> zeros_like(const TttWeights<double>& weights) {
  const auto zero = [](const std::vector<double>& x) { return std::vector<double>(x.size()); };
  return {zero(weights.w1), zero(weights.b1), zero(weights.w2), zero(weights.b2)};
}

/// The functions that the calls below go to.
struct TttFunctions {
  decltype(&kernels::ttt_forward) forward = &kernels::ttt_forward;
  decltype(&kernels::ttt_backward) backward = &kernels::ttt_backward;
};

template <typename T>
TttOutputs<ParameterOf<T>> call_forward(const TttCase& c, const TttTensors<double>& x,
                                        kernels::TttSaved* saved = nullptr,
                                        const TttFunctions& functions = {}) {
  using P = ParameterOf<T>;
  const InputTensors<T> inputs(c, x);
  const StateTensors<P> initial(c, x.initial);
  const StateTensors<P> final_state(c, zeros_like(x.initial));
  Tensor out(inputs.q.shape(), kDType<T>);
  Stream queue = stream();
  functions.forward(inputs.views(), c.options, initial.views(), out, final_state.views(), saved,
                    queue);
  queue.synchronize();
  return {elements_of<T>(out), final_state.values()};
}

/// Gradients; the tensors that backward adds to start from zero. `d_final` may be empty.
template <typename T>
TttTensors<ParameterOf<T>> call_backward(const TttCase& c, const TttTensors<double>& x,
                                         const TttLoss& loss, const TttFunctions& functions = {}) {
  using P = ParameterOf<T>;
  const InputTensors<T> inputs(c, x);
  const StateTensors<P> initial(c, x.initial);
  const StateTensors<P> d_final(c, loss.d_final);
  const StateTensors<P> d_initial(c, zeros_like(x.initial));
  kernels::TttSaved saved;
  call_forward<T>(c, x, &saved, functions);
  const auto like = [](const Tensor& tensor) {
    return tensor.empty() ? Tensor() : Tensor::zeros(tensor.shape(), tensor.dtype());
  };
  const Tensor d_q = like(inputs.q);
  const Tensor d_k = like(inputs.k);
  const Tensor d_v = like(inputs.v);
  const Tensor d_token_lr = like(inputs.token_lr);
  const Tensor d_token_scale = like(inputs.token_scale);
  const Tensor d_norm_weight = like(inputs.norm_weight);
  const Tensor d_norm_bias = like(inputs.norm_bias);
  const Tensor d_out = tensor_of<T>(inputs.q.shape(), loss.d_out);
  Stream queue = stream();
  functions.backward(inputs.views(), c.options, initial.views(), saved, d_out, d_final.views(),
                     {d_q, d_k, d_v, d_token_lr, d_token_scale, d_norm_weight, d_norm_bias},
                     d_initial.views(), queue);
  queue.synchronize();
  return {elements_of<T>(d_q),           elements_of<T>(d_k),
          elements_of<T>(d_v),           elements_of<P>(d_token_lr),
          elements_of<P>(d_token_scale), elements_of<P>(d_norm_weight),
          elements_of<P>(d_norm_bias),   d_initial.values()};
}

}  // namespace ttt::test
