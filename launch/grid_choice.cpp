#include "launch/grid_choice.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "configs/run_config.h"
#include "core/base/error.h"

namespace ttt::launch {
namespace {

double gib(double bytes) { return bytes / 1073741824.0; }

bool fits(std::int64_t virtual_shards, std::int64_t data_ranks) {
  return virtual_shards % data_ranks == 0 &&
         std::has_single_bit(static_cast<std::uint64_t>(virtual_shards / data_ranks));
}

config::RunConfig with_grid(config::RunConfig config, std::int64_t sequence_ranks,
                            std::int64_t data_ranks) {
  config.mutable_parallel()->set_sequence_ranks(sequence_ranks);
  if (!fits(config.parallel().virtual_shards(), data_ranks)) {
    config.mutable_parallel()->set_virtual_shards(data_ranks);
  }
  return config;
}

}  // namespace

std::string Candidate::describe() const {
  const std::int64_t sequence_ranks = config.parallel().sequence_ranks();
  return fmt::format("{} x {}, micro-batch {}{}", world / sequence_ranks, sequence_ranks,
                     config.train().micro_batch_size(),
                     config.train().recompute_blocks() ? ", recompute" : "");
}

Planner::Planner(config::RunConfig config, config::MachineConfig machine)
    : config_(std::move(config)), machine_(std::move(machine)) {
  const bool is_cuda = machine_.kind() == config::MachineConfig::CUDA;
  if (is_cuda && config_.train().precision() == config::FP64) {
    fail(ExitCode::kUsage, "train.precision = FP64 on machine {}: fp64 is computed on the CPU only",
         machine_.name());
  }
  device_ = {is_cuda ? Device::kCuda : Device::kCpu,
             static_cast<int>(machine_.compute_capability())};
}

const StepTrace& Planner::trace_of(const config::RunConfig& config, std::int64_t world) {
  const config::ParallelConfig& parallel = config.parallel();
  const std::int64_t data_ranks = world / parallel.sequence_ranks();
  const std::string key =
      fmt::format("{} {} {} {} {}", parallel.sequence_ranks(), config.train().micro_batch_size(),
                  config.train().recompute_blocks(), parallel.virtual_shards() / data_ranks,
                  has_zero(config) ? world : 0);
  const auto found = traces_.find(key);
  StepTrace& trace = found != traces_.end()
                         ? found->second
                         : traces_.emplace(key, trace_step(config, world, device_)).first->second;
  trace.micro_batches = config.train().batch_size() / data_ranks / trace.rows;
  return trace;
}

Candidate Planner::evaluate(const config::RunConfig& config, std::int64_t world) {
  Candidate candidate;
  candidate.config = config;
  candidate.world = world;
  const std::vector<std::string> problems = config::find_problems(config, static_cast<int>(world));
  if (!problems.empty()) {
    candidate.problem = problems.front();
    return candidate;
  }
  const StepTrace& trace = trace_of(config, world);
  candidate.memory = trace.memory;
  candidate.flops_per_token = trace.flops_per_token;
  candidate.time = predict_step(config, world, trace, machine_);
  const auto needed = static_cast<double>(trace.memory.needed());
  if (needed > usable_memory()) {
    candidate.problem = fmt::format("needs {:.2f} GiB of the {:.2f} that a rank may use",
                                    gib(needed), gib(usable_memory()));
  }
  return candidate;
}

std::vector<Candidate> Planner::choose(std::int64_t world) {
  std::vector<Candidate> candidates;
  for (std::int64_t sequence_ranks = 1; sequence_ranks <= world; ++sequence_ranks) {
    if (world % sequence_ranks != 0) continue;
    const std::int64_t data_ranks = world / sequence_ranks;
    config::RunConfig config = with_grid(config_, sequence_ranks, data_ranks);
    config.mutable_train()->set_micro_batch_size(1);
    Candidate first = evaluate(config, world);
    if (!first.runs() && first.memory.peak == 0) {  // the grid itself is refused
      candidates.push_back(std::move(first));
      continue;
    }
    const std::int64_t rows = config.train().batch_size() / config.parallel().virtual_shards();
    for (std::int64_t micro_batch = 1; rows % micro_batch == 0; micro_batch *= 2) {
      config.mutable_train()->set_micro_batch_size(micro_batch);
      for (const bool recompute_blocks : {false, true}) {
        config.mutable_train()->set_recompute_blocks(recompute_blocks);
        candidates.push_back(evaluate(config, world));
      }
    }
  }
  std::ranges::stable_sort(candidates, [](const Candidate& a, const Candidate& b) {
    if (a.runs() != b.runs()) return a.runs();
    if (!a.runs()) return false;
    return std::pair(a.time.step(), a.memory.needed()) <
           std::pair(b.time.step(), b.memory.needed());
  });
  return candidates;
}

}  // namespace ttt::launch
