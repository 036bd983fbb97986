// Tokens a second of the whole 125M model: training step without the optimiser, prefill, decoding. items_per_second is
// tokens a second.

#include <benchmark/benchmark.h>

#include "core/base/rng.h"
#include "core/model.h"

namespace ttt {
namespace {

// Mamba backbone for the TTT layers, Transformer backbone for attention: the published models of 125M parameters.
config::ModelConfig config_125m(config::Mixer mixer) {
  config::ModelConfig config;
  config.set_vocab_size(32000);
  config.set_hidden_size(768);
  config.set_intermediate_size(2048);
  config.set_num_layers(12);
  config.set_num_heads(12);
  config.set_mixer(mixer);
  const bool is_ttt = mixer != config::ATTENTION;
  config.set_use_gate(is_ttt);
  config.set_share_qk(is_ttt);
  config.set_pre_conv(is_ttt);
  config.set_tie_embeddings(true);
  config.mutable_ttt()->set_base_learning_rate(mixer == config::TTT_MLP ? 0.1 : 1.0);
  return config;
}

std::unique_ptr<LanguageModel> random_model(config::Mixer mixer, std::int64_t tokens) {
  auto model = std::make_unique<LanguageModel>(config_125m(mixer), tokens);
  model->parameters().allocate(DType::kF32);
  model->parameters().initialize(1);
  return model;
}

Tensor random_ids(const char* name, std::int64_t tokens) {
  const CounterRng rng(1, name);
  Tensor ids({1, tokens}, DType::kI64);
  for (std::int64_t t = 0; t < tokens; ++t) {
    ids.data<std::int64_t>()[t] =
        static_cast<std::int64_t>(rng.bits(static_cast<std::uint64_t>(t)) % 32000);
  }
  return ids;
}

void bench_step(benchmark::State& state, config::Mixer mixer, kernels::Precision precision) {
  const std::int64_t tokens = state.range(0);
  const auto model = random_model(mixer, tokens);
  const Tensor gradients = Tensor::zeros({model->parameters().num_elements()}, DType::kF32);
  model->parameters().bind_gradients(gradients);
  const Tensor ids = random_ids("ids", tokens);
  const Tensor targets = random_ids("targets", tokens);
  const Tensor weight({1, tokens}, DType::kF64);
  fill(weight, 1.0 / static_cast<double>(tokens));
  const Tensor nll({1, tokens}, DType::kF64);
  Stream stream;
  Context context{stream, precision};
  const bool recompute_blocks = false;
  model->forward_backward({ids, targets, weight}, nll, recompute_blocks, context);  // warm-up
  for (auto _ : state) {
    fill(gradients, 0);
    model->forward_backward({ids, targets, weight}, nll, recompute_blocks, context);
  }
  state.SetItemsProcessed(state.iterations() * tokens);
}

void bench_prefill(benchmark::State& state, config::Mixer mixer) {
  const std::int64_t tokens = state.range(0);
  const auto model = random_model(mixer, tokens);
  const Tensor ids = random_ids("ids", tokens);
  Stream stream;
  Context context{stream};
  for (auto _ : state) {
    const auto decode_state = model->make_decode_state(1, context);
    benchmark::DoNotOptimize(model->extend(ids, *decode_state, false, context).data<float>());
  }
  state.SetItemsProcessed(state.iterations() * tokens);
}

// Tokens one by one after a prompt of 512.
void bench_decode(benchmark::State& state, config::Mixer mixer) {
  const std::int64_t prompt = 512;
  const auto model = random_model(mixer, prompt);
  Stream stream;
  Context context{stream};
  const auto decode_state = model->make_decode_state(1, context);
  (void)model->extend(random_ids("ids", prompt), *decode_state, false, context);
  const Tensor next = random_ids("next", 1);
  for (auto _ : state) {
    benchmark::DoNotOptimize(model->extend(next, *decode_state, false, context).data<float>());
  }
  state.SetItemsProcessed(state.iterations());
  const auto weight_bytes = static_cast<double>(model->parameters().values().num_bytes());
  state.counters["weights_bytes_per_second"] = benchmark::Counter(
      weight_bytes, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}

void lengths(benchmark::internal::Benchmark* bench) {
  bench->ArgName("T")->Arg(512)->Arg(2048)->UseRealTime()->Unit(benchmark::kMillisecond);
}

using kernels::Precision;
BENCHMARK_CAPTURE(bench_step, linear_f32, config::TTT_LINEAR, Precision::kNative)->Apply(lengths);
BENCHMARK_CAPTURE(bench_step, linear_bf16, config::TTT_LINEAR, Precision::kBF16)->Apply(lengths);
BENCHMARK_CAPTURE(bench_step, mlp_f32, config::TTT_MLP, Precision::kNative)->Apply(lengths);
BENCHMARK_CAPTURE(bench_step, mlp_bf16, config::TTT_MLP, Precision::kBF16)->Apply(lengths);
BENCHMARK_CAPTURE(bench_step, attention_f32, config::ATTENTION, Precision::kNative)->Apply(lengths);
BENCHMARK_CAPTURE(bench_step, attention_bf16, config::ATTENTION, Precision::kBF16)->Apply(lengths);

BENCHMARK_CAPTURE(bench_prefill, linear, config::TTT_LINEAR)->Apply(lengths);
BENCHMARK_CAPTURE(bench_prefill, mlp, config::TTT_MLP)->Apply(lengths);
BENCHMARK_CAPTURE(bench_prefill, attention, config::ATTENTION)->Apply(lengths);

BENCHMARK_CAPTURE(bench_decode, linear, config::TTT_LINEAR)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(bench_decode, mlp, config::TTT_MLP)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(bench_decode, attention, config::ATTENTION)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace ttt
