#pragma once
// What a run is between two steps, and how it is restored; launch/checkpoint_saver.h saves it.

#include <string>

#include "core/optimizer.h"
#include "dist/communicator.h"
#include "launch/model_source.h"

namespace ttt::launch {

struct RunState {
  std::int64_t step = 0;     // updates done
  std::int64_t tokens = 0;   // tokens seen
  config::GuardState guard;  // launch/guard.h
  std::string order_digest;  // of data.order_file as this process found it; empty without one
};

/// Whether checkpoints are written while training goes on. One that is saved at the end only has no steps to be written beside.
bool is_saved_asynchronously(const config::RunConfig& config);

/// What of a run has a value for every parameter, where it lies.
data::FlatState flat_state(const LanguageModel& model, const Optimizer& optimizer);

/// The rest of it, as its checkpoint has it.
config::CheckpointManifest describe_run(const config::RunConfig& config, const RunState& state,
                                        int num_ranks);

/// `resume` is "auto" (the newest good checkpoint of the run if there is any), "never", or the path of a
/// checkpoint. Fills the optimizer, `state`, and the model where this rank's optimizer updates it, from the shards that hold
/// these parts: so all ranks together read a checkpoint once when as many saved it. True if something was resumed. What one
/// rank finds damaged all pass over, with a warning, under "auto"; when all checkpoints are damaged it throws 65 rather than
/// start anew. 78 with the differing fields when the configuration does not fit, or when data.order_file's content is
/// another than the checkpoint's (state.order_digest, which is the caller's). Collective.
bool resume_checkpoint(const std::string& resume, const config::RunConfig& config,
                       LanguageModel& model, Optimizer& optimizer, RunState& state,
                       dist::Communicator& communicator);

/// What a run that starts from the weights of `source` has otherwise, as far as the shapes of tensors do not tell: fields of
/// the model, and the digest of the tokenizer, where both are known. `tokenizer` is the training data's; may be empty.
std::vector<std::string> differences_from(const ModelSource& source,
                                          const config::RunConfig& config,
                                          const std::string& tokenizer);

/// The fields in which a resumed run may not differ, "field: checkpoint value, run value" each.
std::vector<std::string> resume_conflicts(const config::RunConfig& saved,
                                          const config::RunConfig& current);

}  // namespace ttt::launch
