// How much of a step the ranks compute when states are passed on, docs/parallelism.md, "State passing": a whole model's
// forward and backward over MPI, where the inner loop sleeps and nothing else takes time. That is the worst case: all that
// is not the inner loop needs no state.
//
//   mpirun -np P ttt_wavefront [seconds a row]

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>

#include "core/base/timer.h"
#include "core/model.h"
#include "dist/launch_environment.h"
#include "dist/sequence_exchange.h"
#include "tests/bench/sequence/sleeping_device.h"

namespace ttt::bench {
namespace {

constexpr int kRepeats = 5;

// 128 heads: enough pairs for a device in one row. The state, 540 KB, is that of the 1.3B model.
config::RunConfig run_config(std::int64_t layers, std::int64_t ranks) {
  config::RunConfig config;
  config::ModelConfig& model = *config.mutable_model();
  model.set_vocab_size(32);
  model.set_hidden_size(4096);
  model.set_intermediate_size(64);
  model.set_num_layers(layers);
  model.set_num_heads(128);
  model.set_mixer(config::TTT_LINEAR);
  model.set_use_gate(true);
  model.set_share_qk(true);
  model.set_pre_conv(true);
  config.mutable_data()->set_context_length(16 * ranks);
  config.mutable_parallel()->set_sequence_ranks(ranks);
  return config;
}

// Forward and backward of `rows` sequences; the slowest rank's median.
double step_seconds(const LanguageModel& model, std::int64_t rows, SequenceExchange* sequence,
                    dist::Communicator& world, Stream& stream) {
  const Shape shape{rows, 16};
  const Tensor ids = Tensor::zeros(shape, DType::kI64);
  const Tensor weight = Tensor::zeros(shape, DType::kF64);
  const Tensor nll(shape, DType::kF64);
  Context context{stream};
  context.sequence = sequence;
  std::array<double, kRepeats> seconds{};
  for (double& repeat : seconds) {
    world.barrier();
    const Timer timer;
    model.forward_backward({ids, ids, weight}, nll, false, context);
    const Tensor times = Tensor::zeros({world.size()}, DType::kF64);
    times.data<double>()[world.rank()] = timer.seconds();
    Stream host;
    world.all_reduce_sum(times, host);
    repeat = *std::ranges::max_element(times.span<double>());
  }
  std::ranges::sort(seconds);
  return seconds[kRepeats / 2];
}

void run(dist::Communicator& world, double seconds) {
  Stream stream = make_sleeping_stream(seconds);
  const std::int64_t ranks = world.size();
  if (world.rank() == 0) {
    std::printf("P %d, %.1f ms a row and layer\n", world.size(), 1e3 * seconds);
    std::printf("layers  m  alone ms  split ms  efficiency  m/(m+P-1)  L m/(L m+P-1)\n");
  }
  for (const std::int64_t layers : {1, 2, 12}) {
    const config::RunConfig config = run_config(layers, ranks);
    LanguageModel model(config.model(), config.data().context_length());
    model.parameters().allocate(DType::kF32);
    const Tensor gradients({model.parameters().num_elements()}, DType::kF32);
    model.parameters().bind_gradients(gradients);
    const auto sequence = dist::make_sequence_exchange(sequence_split(config), world);
    for (const std::int64_t rows : {1, 2, 4, 8}) {
      const double alone = step_seconds(model, rows, nullptr, world, stream);
      const double split = step_seconds(model, rows, sequence.get(), world, stream);
      const auto bound = [&](std::int64_t groups) {
        return static_cast<double>(groups) / static_cast<double>(groups + ranks - 1);
      };
      if (world.rank() != 0) continue;
      std::printf("%6lld %2lld %9.1f %9.1f %11.3f %10.3f %14.3f\n", static_cast<long long>(layers),
                  static_cast<long long>(rows), 1e3 * alone, 1e3 * split, alone / split,
                  bound(rows), bound(layers * rows));
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace ttt::bench

int main(int argc, char** argv) {
  ttt::dist::Runtime runtime;
  try {
    ttt::bench::run(runtime.world(), argc > 1 ? std::atof(argv[1]) : 5e-3);
  } catch (const ttt::Error& error) {
    std::fprintf(stderr, "rank %d: %s\n", runtime.world().rank(), error.what());
    runtime.abort(error.code());
  }
}
