#pragma once
// Which grid (data x sequence), micro-batch and recomputation a run should have on a number of ranks, by trying all.

#include <map>
#include <string>
#include <vector>

#include "launch/step_model.h"

namespace ttt::launch {

/// One way to run: `config` with its grid, micro-batch, recomputation and virtual shards set.
struct Candidate {
  config::RunConfig config;
  std::int64_t world = 1;
  std::string problem;  // why it cannot run; empty when it can
  MemoryPlan memory;    // the following only when the configuration is valid
  StepPrediction time;
  double flops_per_token = 0;

  [[nodiscard]] bool runs() const { return problem.empty(); }
  [[nodiscard]] std::string describe() const;  // "8 x 4, micro-batch 2, recompute"
};

/// Predicts runs of one model and machine.
class Planner {
 public:
  /// fp64 on CUDA fails with kUsage.
  Planner(config::RunConfig config, config::MachineConfig machine);

  /// `config` as it stands on `world` ranks.
  Candidate evaluate(const config::RunConfig& config, std::int64_t world);
  /// Every factorisation of `world`, powers of two of sequences a micro-batch, with and without recomputation. What runs
  /// comes first, fastest first, among equals the one that needs less memory; then what cannot run. Where the number of
  /// virtual shards does not fit the data ranks, it is made the number of data ranks.
  std::vector<Candidate> choose(std::int64_t world);

  /// The ops of a candidate's step.
  const StepTrace& trace_of(const config::RunConfig& config, std::int64_t world);
  [[nodiscard]] const config::MachineConfig& machine() const { return machine_; }
  [[nodiscard]] double usable_memory() const {
    return machine_.memory_bytes() * machine_.usable_memory_fraction();
  }

 private:
  config::RunConfig config_;
  config::MachineConfig machine_;
  kernels::PlannedDevice device_;
  std::map<std::string, StepTrace> traces_;
};

}  // namespace ttt::launch
