// What a trainer does to know its loss on held-out tokens.

#include <algorithm>
#include <optional>

#include "launch/evaluation.h"
#include "launch/trainer.h"

namespace ttt::launch {

bool Trainer::evaluate() {
  if (held_out_.empty() || config_.eval().num_windows() == 0) return true;
  const dist::PhaseScope scope(record_, dist::Phase::kEvaluation);
  gradient_sum_->wait_for_parameters(stream_);
  Context ctx = context(1.0);
  // Without a set of its own the run's loss is that of the mixture.
  const bool has_own = held_out_.front().source.empty();
  double loss = 0;
  double weights = 0;
  RunOutput::BySource losses;
  for (std::size_t i = 0; i < held_out_.size(); ++i) {
    const BatchReader& reader = held_out_readers_[i];
    const std::int64_t windows = std::min(config_.eval().num_windows(), reader.num_windows());
    const std::optional<double> of_set =
        validation_loss(*model_, reader, windows, config_.eval().micro_batch_size(), grid_, ctx);
    if (!of_set) return false;
    const bool is_source = !held_out_[i].source.empty();
    if (is_source) losses.emplace_back(held_out_[i].source, *of_set);
    if (is_source && has_own) continue;
    loss += held_out_[i].weight * *of_set;
    weights += held_out_[i].weight;
  }
  if (output_) output_->validation(state_.step, loss / weights, losses);
  return true;
}

bool Trainer::lacks_evaluation() {
  if (state_.step == 0 || !is_due(config_.eval().interval_steps())) return false;
  const bool is_known = output_ && output_->has_validation(state_.step);
  return grid_.world().gather_strings(is_known ? "+" : "").front().empty();
}

}  // namespace ttt::launch
