// GFLOP/s of the three products at the shapes of the small models, and of one single-threaded BLAS call, of which the
// goal is 90 % on every core.

#include <benchmark/benchmark.h>

#include "kernels/cpu/blas.h"
#include "kernels/head_cross_entropy.h"
#include "kernels/matmul.h"

namespace ttt::kernels {
namespace {

enum Kind : std::int64_t { kForward, kBackwardInput, kBackwardWeight };

Tensor filled(const Shape& shape, double value) {
  Tensor tensor(shape, DType::kF32);
  fill(tensor, value);
  return tensor;
}

void bench_matmul(benchmark::State& state, Precision precision) {
  Stream stream;
  const std::int64_t rows = state.range(1);
  const std::int64_t inputs = state.range(2);
  const std::int64_t outputs = state.range(3);
  const Tensor x = filled({rows, inputs}, 0.5);
  const Tensor w = filled({outputs, inputs}, 0.25);
  const Tensor y = filled({rows, outputs}, 0.125);
  for (auto _ : state) {
    switch (state.range(0)) {
      case kForward:
        linear_forward(x, w, {}, y, precision, stream);
        break;
      case kBackwardInput:
        linear_backward_input(y, w, x, Accumulate::kNo, precision, stream);
        break;
      default:
        linear_backward_weight(y, x, w, precision, stream);
    }
  }
  const double flops = 2.0 * static_cast<double>(rows * inputs * outputs);
  state.counters["GFLOP/s"] = benchmark::Counter(
      flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}

void shapes(benchmark::internal::Benchmark* bench) {
  for (const std::int64_t kind : {kForward, kBackwardInput, kBackwardWeight}) {
    for (const std::int64_t rows : {512, 2048}) {
      bench->Args({kind, rows, 768, 768});
      bench->Args({kind, rows, 768, 2048});
      bench->Args({kind, rows, 2048, 768});
    }
    bench->Args({kind, 512, 768, 32000});
  }
  bench->ArgNames({"product", "N", "I", "O"})->UseRealTime()->Unit(benchmark::kMillisecond);
}

BENCHMARK_CAPTURE(bench_matmul, f32, Precision::kNative)->Apply(shapes);
BENCHMARK_CAPTURE(bench_matmul, bf16, Precision::kBF16)->Apply(shapes);

void bench_one_blas_call(benchmark::State& state) {
  const std::int64_t rows = state.range(0);
  const std::int64_t inputs = state.range(1);
  const std::int64_t outputs = state.range(2);
  const Tensor x = filled({rows, inputs}, 0.5);
  const Tensor w = filled({outputs, inputs}, 0.25);
  const Tensor y = filled({rows, outputs}, 0.125);
  for (auto _ : state) {
    cpu::for_each_block(1, [&](std::int64_t) {
      cpu::gemm(cpu::Op::kNone, cpu::Op::kTranspose, rows, outputs, inputs, 1.0F, x.data<float>(),
                inputs, w.data<float>(), inputs, 0.0F, y.data<float>(), outputs);
    });
  }
  const double flops = 2.0 * static_cast<double>(rows * inputs * outputs);
  state.counters["GFLOP/s"] = benchmark::Counter(
      flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}

BENCHMARK(bench_one_blas_call)
    ->ArgNames({"N", "I", "O"})
    ->Args({2048, 768, 768})
    ->Args({2048, 768, 2048})
    ->Args({512, 768, 32000})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

void bench_head(benchmark::State& state, Precision precision) {
  Stream stream;
  const std::int64_t tokens = 2048;
  const std::int64_t channels = 768;
  const std::int64_t vocab = 32000;
  const Tensor x = filled({tokens, channels}, 0.5);
  const Tensor w = filled({vocab, channels}, 0.01);
  const Tensor d_x = filled({tokens, channels}, 0);
  const Tensor d_w = filled({vocab, channels}, 0);
  const Tensor targets = Tensor::zeros({tokens}, DType::kI64);
  const Tensor weight = Tensor::zeros({tokens}, DType::kF64);
  fill(weight, 1.0 / static_cast<double>(tokens));
  const Tensor nll({tokens}, DType::kF64);
  const bool gradients = state.range(0) != 0;
  for (auto _ : state) {
    head_cross_entropy(x, w, targets, weight, nll, gradients ? d_x.view() : TensorView(),
                       gradients ? d_w.view() : TensorView(), precision, stream);
  }
  const double flops = (gradients ? 6.0 : 2.0) * static_cast<double>(tokens * channels * vocab);
  state.counters["GFLOP/s"] = benchmark::Counter(
      flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}

BENCHMARK_CAPTURE(bench_head, f32, Precision::kNative)
    ->ArgName("gradients")
    ->Arg(0)
    ->Arg(1)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(bench_head, bf16, Precision::kBF16)
    ->ArgName("gradients")
    ->Arg(0)
    ->Arg(1)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace ttt::kernels
