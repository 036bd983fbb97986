#pragma once
// What a run is between two steps, saved and restored by all ranks together.

#include <string>

#include "core/optimizer.h"
#include "dist/communicator.h"
#include "launch/model_source.h"

namespace ttt::launch {

struct RunState {
  std::int64_t step = 0;     // updates done
  std::int64_t tokens = 0;   // tokens seen
  config::GuardState guard;  // launch/guard.h
};

/// Writes RUN/checkpoints/step-N: a shard a rank with the elements it `owned`, which over all ranks are all, committed by
/// rank 0. `tokenizer` (may be empty) is copied into it. Collective; throws the same error on every rank when any shard failed.
void save_checkpoint(const config::RunConfig& config, const RunState& state,
                     const LanguageModel& model, const Optimizer& optimizer,
                     const std::vector<FlatRange>& owned, const std::string& tokenizer,
                     dist::Communicator& communicator);

/// `resume` is "auto" (the newest good checkpoint of the run if there is any), "never", or the path of a
/// checkpoint. Fills model, optimizer and `state`; true if something was resumed. A damaged newest
/// checkpoint is passed over with a warning under "auto"; when all are damaged it throws 65 rather than
/// start anew. 78 with the differing fields when the configuration does not fit. Collective.
bool resume_checkpoint(const std::string& resume, const config::RunConfig& config,
                       LanguageModel& model, Optimizer& optimizer, RunState& state);

/// The fields in which a resumed run may not differ, "field: checkpoint value, run value" each.
std::vector<std::string> resume_conflicts(const config::RunConfig& saved,
                                          const config::RunConfig& current);

}  // namespace ttt::launch
