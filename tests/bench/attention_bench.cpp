// Tokens a second of softmax attention at the size of the small models.

#include <benchmark/benchmark.h>

#include "core/base/rng.h"
#include "kernels/attention.h"

namespace ttt::kernels {
namespace {

Tensor random_tensor(const Shape& shape, const char* name) {
  const Tensor tensor(shape, DType::kF32);
  const CounterRng rng(1, name);
  for (std::int64_t i = 0; i < tensor.numel(); ++i) {
    tensor.data<float>()[i] = static_cast<float>(rng.normal(static_cast<std::uint64_t>(i)));
  }
  return tensor;
}

void bench_attention(benchmark::State& state, bool with_backward) {
  Stream stream;
  const std::int64_t tokens = state.range(0);
  const Shape shape{1, tokens, 12, 64};
  const Tensor q = random_tensor(shape, "q");
  const Tensor k = random_tensor(shape, "k");
  const Tensor v = random_tensor(shape, "v");
  const Tensor d_out = random_tensor(shape, "d_out");
  const Tensor out(shape, DType::kF32);
  const Tensor lse({1, 12, tokens}, DType::kF32);
  const Tensor d_q(shape, DType::kF32);
  const Tensor d_k(shape, DType::kF32);
  const Tensor d_v(shape, DType::kF32);
  for (auto _ : state) {
    attention_forward(q, k, v, out, lse, 0.125, stream);
    if (with_backward) {
      attention_backward(q, k, v, out, lse, d_out, d_q, d_k, d_v, 0.125, stream);
    }
  }
  state.SetItemsProcessed(state.iterations() * tokens);
  // Products of the causal half: 2 forward, 5 backward.
  const double products = with_backward ? 7 : 2;
  state.counters["GFLOP/s"] = benchmark::Counter(
      products * static_cast<double>(tokens * tokens) * 12 * 64 * 1e-9,
      benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}

BENCHMARK_CAPTURE(bench_attention, forward, false)
    ->ArgName("T")
    ->Arg(2048)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(bench_attention, forward_backward, true)
    ->ArgName("T")
    ->Arg(2048)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace ttt::kernels
