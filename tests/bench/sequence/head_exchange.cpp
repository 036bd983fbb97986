// What head exchange costs on these ranks, docs/parallelism.md: a step of split sequences beside one of as many tokens
// whose sequences are whole, on all ranks at once. Both run the same products and inner loops; the first has the copies
// and messages of the exchange on top, and the waiting for the others.
//
//   mpirun -np P ttt_head_exchange [hidden size] [layers] [tokens]

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>

#include "core/base/timer.h"
#include "core/model.h"
#include "dist/launch_environment.h"
#include "dist/sequence_exchange.h"
#include "kernels/threads.h"

namespace ttt::bench {
namespace {

constexpr int kRepeats = 9;

config::RunConfig run_config(config::Mixer mixer, std::int64_t channels, std::int64_t layers,
                             std::int64_t tokens, std::int64_t ranks) {
  config::RunConfig config;
  config::ModelConfig& model = *config.mutable_model();
  model.set_vocab_size(256);
  model.set_hidden_size(channels);
  model.set_intermediate_size(channels * 8 / 3 / 64 * 64);
  model.set_num_layers(layers);
  model.set_num_heads(channels / 64);
  model.set_mixer(mixer);
  const bool is_ttt = mixer != config::ATTENTION;
  model.set_use_gate(is_ttt);
  model.set_share_qk(is_ttt);
  model.set_pre_conv(is_ttt);
  config.mutable_data()->set_context_length(tokens);
  config.mutable_parallel()->set_sequence_ranks(ranks);
  config.mutable_parallel()->set_sequence_exchange(config::ParallelConfig::HEAD_EXCHANGE);
  return config;
}

struct Batch {
  Tensor ids, weight, nll;

  Batch(std::int64_t rows, std::int64_t tokens)
      : ids(Tensor::zeros({rows, tokens}, DType::kI64)),
        weight({rows, tokens}, DType::kF64),
        nll(weight.shape(), DType::kF64) {
    for (std::int64_t i = 0; i < ids.numel(); ++i) ids.data<std::int64_t>()[i] = i * 7 % 256;
    fill(weight, 1.0 / static_cast<double>(rows * tokens));
  }
};

// The slowest rank's.
double step_seconds(const LanguageModel& model, const Batch& batch, SequenceExchange* sequence,
                    dist::Communicator& world) {
  Stream stream;
  Context context{stream};
  context.sequence = sequence;
  world.barrier();
  const Timer timer;
  model.forward_backward({batch.ids, batch.ids, batch.weight}, batch.nll, false, context);
  const Tensor times = Tensor::zeros({world.size()}, DType::kF64);
  times.data<double>()[world.rank()] = timer.seconds();
  world.all_reduce_sum(times, stream);
  return *std::ranges::max_element(times.span<double>());
}

void compare(config::Mixer mixer, std::int64_t channels, std::int64_t layers, std::int64_t tokens,
             dist::Communicator& world) {
  const config::RunConfig config = run_config(mixer, channels, layers, tokens, world.size());
  LanguageModel model(config.model(), tokens);
  model.parameters().allocate(DType::kF32);
  model.parameters().initialize(1);
  const Tensor gradients = Tensor::zeros({model.parameters().num_elements()}, DType::kF32);
  model.parameters().bind_gradients(gradients);
  const auto sequence = dist::make_sequence_exchange(sequence_split(config), world);
  const Batch split(world.size(), sequence->end() - sequence->begin());
  const Batch whole(1, tokens);
  std::array<double, kRepeats> of_split{};
  std::array<double, kRepeats> of_whole{};
  std::array<double, kRepeats> overhead{};
  step_seconds(model, whole, nullptr, world);  // warm-up
  step_seconds(model, split, sequence.get(), world);
  for (std::size_t i = 0; i < kRepeats; ++i) {
    of_whole[i] = step_seconds(model, whole, nullptr, world);
    of_split[i] = step_seconds(model, split, sequence.get(), world);
    overhead[i] = of_split[i] / of_whole[i] - 1;
  }
  const auto median = [](std::array<double, kRepeats>& values) {
    std::ranges::sort(values);
    return values[kRepeats / 2];
  };
  const double medians[] = {1e3 * median(of_whole), 1e3 * median(of_split), 100 * median(overhead)};
  if (world.rank() == 0) {
    std::printf(
        "%-16s C %lld, %lld layers, %d x %lld tokens: whole %.1f ms, split %.1f ms, overhead "
        "%+.1f %% (median of pairs; %+.1f to %+.1f)\n",
        config::Mixer_Name(mixer).c_str(), static_cast<long long>(channels),
        static_cast<long long>(layers), world.size(), static_cast<long long>(tokens), medians[0],
        medians[1], medians[2], 100 * overhead.front(), 100 * overhead.back());
    std::fflush(stdout);
  }
}

void run(dist::Communicator& world, std::int64_t channels, std::int64_t layers,
         std::int64_t tokens) {
  if (world.size() < 2) fail(ExitCode::kUsage, "head exchange needs two ranks: mpirun -np 2");
  kernels::set_num_threads(1);
  for (const auto mixer : {config::ATTENTION, config::TTT_LINEAR, config::TTT_MLP}) {
    compare(mixer, channels, layers, tokens, world);
  }
}

}  // namespace
}  // namespace ttt::bench

int main(int argc, char** argv) {
  const auto argument = [&](int i, std::int64_t otherwise) {
    return argc > i ? std::atoll(argv[i]) : otherwise;
  };
  ttt::dist::Runtime runtime;
  try {
    ttt::bench::run(runtime.world(), argument(1, 768), argument(2, 2), argument(3, 1024));
  } catch (const ttt::Error& error) {
    std::fprintf(stderr, "rank %d: %s\n", runtime.world().rank(), error.what());
    runtime.abort(error.code());
  }
}
