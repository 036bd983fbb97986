#pragma once
// How long a step takes on a machine, from the ops it runs and the bytes it sends: docs/planning.md.

#include "configs/machine.pb.h"
#include "dist/communication_volume.h"
#include "launch/step_trace.h"

namespace ttt::launch {

/// Seconds of one step of one rank, and what it sends.
struct StepPrediction {
  double matmul = 0, inner_loop = 0, attention = 0, memory_bound = 0;  // of all micro-batches
  double update = 0;     // gradient buffers, norm, AdamW
  double bubble = 0;     // waiting for the state of the sequence rank before (behind in backward)
  double exchange = 0;   // heads and halos between sequence ranks, exposed
  double gradients = 0;  // sums and gathers of flat buffers, if nothing hid them
  double exposed_gradients = 0;
  dist::Volume gradient_traffic, sequence_traffic;

  [[nodiscard]] double compute() const {
    return matmul + inner_loop + attention + memory_bound + update;
  }
  [[nodiscard]] double step() const { return compute() + bubble + exchange + exposed_gradients; }
};

StepPrediction predict_step(const config::RunConfig& config, std::int64_t world,
                            const StepTrace& trace, const config::MachineConfig& machine);

/// One call, alone, on one rank's device.
double seconds_of(const kernels::OpCall& call, const config::MachineConfig& machine);

/// Of the FLOP/s that all devices could do, those of the model (3 forward passes a token, without recomputation).
double model_flops_utilization(const config::RunConfig& config, std::int64_t world,
                               double flops_per_token, double step_seconds,
                               const config::MachineConfig& machine);

/// What a sequence rank hands to the next in one layer for one sequence; 0 without a state that can be passed.
double state_bytes(const config::RunConfig& config);

}  // namespace ttt::launch
