#pragma once
// One training step of one rank on a planning device (kernels/planning.h): the memory it needs and the ops it runs, known
// before anything is allocated or computed.

#include <cstdint>
#include <vector>

#include "configs/run.pb.h"
#include "kernels/planning.h"

namespace ttt::launch {

/// Bytes of one rank, as the pool of memory counts them (sizes rounded up to its classes).
struct MemoryPlan {
  std::int64_t parameters = 0;
  std::int64_t gradients = 0;  // the slot, the sums that wait for their neighbours, the result
  std::int64_t moments = 0;
  std::int64_t activations = 0;  // kept from forward for backward, of one micro-batch
  std::int64_t workspace = 0;    // what backward and the ops need on top, at the fullest moment
  std::int64_t peak = 0;         // the sum of the above: memory::peak_bytes()
  std::int64_t held = 0;  // what the pool takes from the system for it: memory::peak_held_bytes()
  std::int64_t library = 0;   // cuBLASLt's workspace
  std::int64_t snapshot = 0;  // what checkpoints are written from, in the host's memory
  bool is_host = true;        // the device is the host

  /// Of the device.
  [[nodiscard]] std::int64_t needed() const { return held + library + (is_host ? snapshot : 0); }
};

/// Calls of one op on operands of equal shapes.
struct CountedCall {
  kernels::OpCall call;
  std::int64_t count = 1;
};

struct StepTrace {
  MemoryPlan memory;
  std::int64_t num_parameters = 0;
  std::int64_t num_elements = 0;         // of a flat buffer: with the gaps between parameters
  double flops_per_token = 0;            // forward, LanguageModel::flops_per_token
  std::int64_t rows = 0;                 // that a pass runs together
  std::int64_t micro_batches = 0;        // that a rank runs in a step
  std::int64_t micro_batch_tokens = 0;   // of a rank, in one micro-batch
  std::vector<CountedCall> micro_batch;  // forward and backward of one
  // Sums of gradients on this rank, the search for NaN, the optimizer.
  std::vector<CountedCall> update;
};

/// Whether moments are divided among the ranks.
bool has_zero(const config::RunConfig& config);

/// Of a rank among `world`, as `config` shares the batch and the sequences out; with ZERO_OPTIMIZER a rank holds the
/// moments of its part of the parameters only. No tensor may be alive. The configuration has been checked for `world`.
/// With data.reset_at_bos: as if every window were one document, which takes the most memory; each is a pass of its own.
StepTrace trace_step(const config::RunConfig& config, std::int64_t world,
                     const kernels::PlannedDevice& device);

}  // namespace ttt::launch
