#include "launch/run_state.h"

#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>

#include <sstream>

#include "configs/run_config.h"
#include "core/base/log.h"
#include "data/files.h"
#include "launch/agreement.h"
#include "launch/guard.h"

namespace ttt::launch {
namespace {

constexpr const char* kCodeVersion = "0.1.0";

// What decides the numbers of a run; the rest may change between its parts.
config::RunConfig numbers_only(const config::RunConfig& config) {
  config::RunConfig result;
  google::protobuf::TextFormat::ParseFromString(config::complete_text(config), &result);
  if (result.optimizer().decay_steps() == 0) {
    result.mutable_optimizer()->set_decay_steps(result.train().steps());
  }
  result.clear_name();
  result.clear_output_directory();
  result.clear_checkpoint();
  result.clear_eval();
  result.clear_log();
  result.mutable_parallel()->clear_zero();
  result.mutable_parallel()->clear_overlap();
  result.clear_watchdog();
  result.clear_guard();  // a run that ended with 81 goes on under another policy
  result.mutable_data()->clear_validation();
  for (config::DataSource& source : *result.mutable_data()->mutable_sources()) {
    source.clear_validation();
  }
  result.mutable_train()->clear_steps();
  result.mutable_train()->clear_num_threads();
  result.mutable_train()->clear_recompute_blocks();
  result.mutable_train()->clear_init_from();
  result.mutable_parallel()->clear_sequence_ranks();
  result.mutable_parallel()->clear_sequence_exchange();
  return result;
}

}  // namespace

std::vector<std::string> resume_conflicts(const config::RunConfig& saved,
                                          const config::RunConfig& current) {
  google::protobuf::util::MessageDifferencer differ;
  std::string report;
  differ.ReportDifferencesToString(&report);
  if (differ.Compare(numbers_only(saved), numbers_only(current))) return {};
  std::vector<std::string> conflicts;
  std::stringstream lines(report);
  for (std::string line; std::getline(lines, line);) conflicts.push_back(line);
  return conflicts;
}

std::vector<std::string> differences_from(const ModelSource& source,
                                          const config::RunConfig& config,
                                          const std::string& tokenizer) {
  config::RunConfig theirs;
  config::RunConfig ours;
  *theirs.mutable_model() = source.config.model();
  *ours.mutable_model() = config.model();
  for (config::RunConfig* side : {&theirs, &ours}) {
    config::ModelConfig& model = *side->mutable_model();
    config::AttentionConfig& attention = *model.mutable_attention();
    model.clear_initializer_range();
    if (attention.num_kv_heads() == model.num_heads()) attention.clear_num_kv_heads();
    // These files have one pairing for all.
    if (source.kind == SourceKind::kHuggingFace) attention.clear_rope_pairing();
  }
  std::vector<std::string> differences = resume_conflicts(theirs, ours);
  if (source.tokenizer.empty() || tokenizer.empty()) return differences;
  const std::string their_digest = data::xxh3_128_hex_of_file(source.tokenizer);
  const std::string digest = data::xxh3_128_hex_of_file(tokenizer);
  if (their_digest != digest) {
    differences.push_back(fmt::format("tokenizer: {} ({}) -> {} ({})", source.tokenizer,
                                      their_digest, tokenizer, digest));
  }
  return differences;
}

bool is_saved_asynchronously(const config::RunConfig& config) {
  return config.checkpoint().asynchronous() && config.checkpoint().interval_steps() > 0;
}

data::FlatState flat_state(const LanguageModel& model, const Optimizer& optimizer) {
  data::FlatState state = flat_state(model, optimizer.m(), optimizer.v());
  state.moments = optimizer.ranges();
  return state;
}

config::CheckpointManifest describe_run(const config::RunConfig& config, const RunState& state,
                                        int num_ranks) {
  config::CheckpointManifest manifest;
  manifest.set_step(state.step);
  manifest.set_tokens(state.tokens);
  manifest.set_next_window((state.step + state.guard.passed_over_steps()) *
                           config.train().batch_size());
  *manifest.mutable_guard() = state.guard;
  if (!state.order_digest.empty()) manifest.set_order_digest(state.order_digest);
  manifest.set_world_size(num_ranks);
  *manifest.mutable_config() = config;
  manifest.set_code_version(kCodeVersion);
  return manifest;
}

namespace {

// Checkpoints that record no digest are of programs that made none.
void expect_same_order(const config::CheckpointManifest& manifest, const config::RunConfig& config,
                       const RunState& state, const std::string& directory) {
  if (manifest.order_digest().empty() || manifest.order_digest() == state.order_digest) return;
  fail(ExitCode::kResumeMismatch,
       "data.order_file {} is not what it was when the run began: digest {}, {} has {}; resuming "
       "needs the same windows (init_from starts a new run from its weights)",
       config.data().order_file(), state.order_digest, directory, manifest.order_digest());
}

// As rank 0 sees them, newest first: on a network file system others may not see all.
std::vector<std::string> checkpoints_of(const std::string& run, dist::Communicator& communicator) {
  std::string mine;
  run_together(communicator, [&] {
    if (communicator.rank() != 0) return;
    for (const auto& location : data::list_checkpoints(run))
      mine += fmt::format("{} ", location.step);
  });
  std::vector<std::string> found;
  std::istringstream steps(communicator.gather_strings(mine).front());
  for (std::int64_t step = 0; steps >> step;)
    found.push_back(data::checkpoint_directory(run, step));
  return found;
}

config::CheckpointManifest restore(const std::string& directory, const config::RunConfig& config,
                                   LanguageModel& model, Optimizer& optimizer,
                                   const RunState& state) {
  config::CheckpointManifest manifest = data::read_manifest(directory);
  const auto conflicts = resume_conflicts(manifest.config(), config);
  if (!conflicts.empty()) {
    fail(ExitCode::kResumeMismatch,
         "{} was made by another configuration; resuming needs the same one (init_from starts "
         "a new run from its weights):\n  {}",
         directory, fmt::join(conflicts, "\n  "));
  }
  expect_same_order(manifest, config, state, directory);
  expect_valid(manifest.guard(), manifest.step(), directory);
  data::read_state(directory, manifest, flat_state(model, optimizer), optimizer.ranges());
  return manifest;
}

}  // namespace

bool resume_checkpoint(const std::string& resume, const config::RunConfig& config,
                       LanguageModel& model, Optimizer& optimizer, RunState& state,
                       dist::Communicator& communicator) {
  const std::string& run = config.output_directory();
  const std::vector<std::string> found = checkpoints_of(run, communicator);
  if (resume == "never" && !found.empty()) {
    fail(ExitCode::kUsage,
         "{} already has checkpoints and --resume is never: name another output_directory or "
         "remove it",
         run);
  }
  if (resume == "never") return false;
  const bool automatic = resume == "auto";
  const std::vector<std::string> candidates = automatic ? found : std::vector{resume};
  for (const std::string& directory : candidates) {
    try {
      config::CheckpointManifest manifest;
      run_together(communicator,
                   [&] { manifest = restore(directory, config, model, optimizer, state); });
      state.step = manifest.step();
      state.tokens = manifest.tokens();
      state.guard = manifest.guard();
      log::info("resumed checkpoint={} step={} tokens={} saved_by_ranks={}", directory, state.step,
                state.tokens, manifest.world_size());
      return true;
    } catch (const Error& error) {
      const bool damaged =
          error.code() == ExitCode::kCorruptInput || error.code() == ExitCode::kMissingInput;
      if (!automatic || !damaged) throw;
      log::warning("passing over a damaged checkpoint: {}", error.what());
    }
  }
  if (!candidates.empty()) {
    fail(ExitCode::kCorruptInput,
         "none of the {} checkpoints of {} is intact; not starting anew over them",
         candidates.size(), run);
  }
  return false;
}

}  // namespace ttt::launch
