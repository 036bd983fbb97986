// Speed of the TTT kernels: one layer of the 125M models (12 heads of 64 features, mini-batches of 16) on T tokens.
// items_per_second is tokens a second of the whole layer.

#include <benchmark/benchmark.h>

#include <cmath>

#include "core/base/rng.h"
#include "core/base/tensor.h"
#include "kernels/ttt.h"

namespace ttt::kernels {
namespace {

constexpr std::int64_t kHeads = 12;
constexpr std::int64_t kFeatures = 64;
constexpr std::int64_t kMiniBatch = 16;

Tensor normal(const char* name, const Shape& shape, double scale) {
  const CounterRng rng(1, name);
  Tensor tensor(shape, DType::kF32);
  for (std::int64_t i = 0; i < tensor.numel(); ++i) {
    tensor.data<float>()[i] = static_cast<float>(scale * rng.normal(static_cast<std::uint64_t>(i)));
  }
  return tensor;
}

Tensor constant(const Shape& shape, double value) {
  Tensor tensor(shape, DType::kF32);
  fill(tensor, value);
  return tensor;
}

struct Layer {
  TttOptions options;
  std::int64_t tokens;
  std::int64_t width = kFeatures;
  Shape rows{1, tokens, kHeads, kFeatures};
  Tensor q = normal("q", rows, 1);
  Tensor k = normal("k", rows, 1);
  Tensor v = normal("v", rows, 1);
  Tensor token_lr = constant({1, tokens, kHeads}, 0.5 / kFeatures);
  Tensor token_scale{Shape{kMiniBatch}, DType::kF32};
  Tensor norm_weight = constant({kHeads, kFeatures}, 1);
  Tensor norm_bias = constant({kHeads, kFeatures}, 0);
  Tensor w1, b1, w2, b2;

  Layer(InnerModel model, std::int64_t num_tokens) : tokens(num_tokens) {
    options.model = model;
    options.mini_batch_size = kMiniBatch;
    for (std::int64_t i = 0; i < kMiniBatch; ++i) {
      token_scale.data<float>()[i] = 1.0F / static_cast<float>(i + 1);
    }
    const bool mlp = model == InnerModel::kMlp;
    if (mlp) width = 4 * kFeatures;
    w1 = normal("w1", {1, kHeads, kFeatures, width}, 0.02);
    b1 = constant({1, kHeads, 1, width}, 0);
    if (!mlp) return;
    w2 = normal("w2", {1, kHeads, width, kFeatures}, 0.02);
    b2 = constant({1, kHeads, 1, kFeatures}, 0);
  }

  [[nodiscard]] TttInputs inputs() const {
    return {q, k, v, token_lr, token_scale, norm_weight, norm_bias};
  }
  [[nodiscard]] TttState state() const { return {w1, b1, w2, b2}; }
};

void forward(benchmark::State& state, InnerModel model) {
  const Layer layer(model, state.range(0));
  const Tensor out(layer.rows, DType::kF32);
  Stream stream;
  for (auto _ : state) {
    ttt_forward(layer.inputs(), layer.options, layer.state(), out, {}, nullptr, stream);
  }
  state.SetItemsProcessed(state.iterations() * layer.tokens);
}

void forward_backward(benchmark::State& state, InnerModel model) {
  const Layer layer(model, state.range(0));
  const Layer gradients(model, state.range(0));
  const Tensor out(layer.rows, DType::kF32);
  const Tensor d_out = normal("d_out", layer.rows, 1);
  Stream stream;
  for (auto _ : state) {
    TttSaved saved;
    ttt_forward(layer.inputs(), layer.options, layer.state(), out, {}, &saved, stream);
    ttt_backward(layer.inputs(), layer.options, layer.state(), saved, d_out, {},
                 {gradients.q, gradients.k, gradients.v, gradients.token_lr, gradients.token_scale,
                  gradients.norm_weight, gradients.norm_bias},
                 gradients.state(), stream);
  }
  state.SetItemsProcessed(state.iterations() * layer.tokens);
}

void lengths(benchmark::internal::Benchmark* bench) {
  bench->ArgName("T")->Arg(512)->Arg(2048)->UseRealTime()->Unit(benchmark::kMillisecond);
}

BENCHMARK_CAPTURE(forward, linear, InnerModel::kLinear)->Apply(lengths);
BENCHMARK_CAPTURE(forward_backward, linear, InnerModel::kLinear)->Apply(lengths);
BENCHMARK_CAPTURE(forward, mlp, InnerModel::kMlp)->Apply(lengths);
BENCHMARK_CAPTURE(forward_backward, mlp, InnerModel::kMlp)->Apply(lengths);

}  // namespace
}  // namespace ttt::kernels
