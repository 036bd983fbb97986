// What a trainer does for its guards: skipped steps, spikes, copies, slow ranks.

#include <algorithm>
#include <cmath>

#include "core/base/log.h"
#include "launch/replica_check.h"
#include "launch/trainer.h"

namespace ttt::launch {
namespace {

const std::string& tensor_at(const ParameterStore& parameters, std::int64_t place) {
  for (const Parameter& parameter : parameters.all()) {
    if (place < parameter.begin + parameter.shape.numel()) return parameter.name;
  }
  fail(ExitCode::kInternal, "there is no element {} in {}", place, parameters.num_elements());
}

}  // namespace

std::string Trainer::find_non_finite(const QueuedStep& step) const {
  const double* const results = step.results.data<double>();
  const std::int64_t batch = config_.train().batch_size();
  const std::int64_t segments = grid_.sequence().size();
  for (std::int64_t r = 0; r < grid_.world().size(); ++r) {
    const double place = results[segments * batch + r * kRankReportSize + kNonFinite];
    if (!std::isfinite(place)) continue;
    return fmt::format("rank {}, gradient of {}", r,
                       tensor_at(model_->parameters(), static_cast<std::int64_t>(place)));
  }
  const std::int64_t rows = batch / grid_.data().size();  // of a rank
  for (std::int64_t i = 0; i < segments * batch; ++i) {
    if (std::isfinite(results[i])) continue;
    return fmt::format("rank {}, loss of sequence {} of the batch",
                       i % batch / rows * segments + i / batch, i % batch);
  }
  return "no rank's own gradient or loss: their sum is too large";
}

void Trainer::judge_skipped(const QueuedStep& step, Guard::Verdict verdict) {
  const std::int64_t allowed = config_.guard().max_consecutive_skips();
  if (verdict == Guard::Verdict::kSpike) {
    const std::string what = fmt::format(
        "spike at step {}: loss {:.6g} (limit {:.6g}), gradient norm {:.6g} (limit {:.6g})",
        step.row.step, step.row.loss, step.limits.loss, step.row.grad_norm, step.limits.norm);
    if (guard_.rolls_back()) {
      if (guard_.may_roll_back()) return log::warning("event=rollback {}", what);
      fail(ExitCode::kNumerical,
           "{}; the run was rolled back {} times already (guard.max_rollbacks); lower "
           "optimizer.learning_rate or look at the data",
           what, guard_.state().rollbacks());
    }
    if (!guard_.is_exhausted()) return log::warning("event=skip {}; no update was made", what);
    fail(ExitCode::kNumerical,
         "{}; {} steps in a row made no update (guard.max_consecutive_skips = {}): lower "
         "optimizer.learning_rate or resume from an older checkpoint",
         what, guard_.state().consecutive_skips(), allowed);
  }
  const std::string what =
      fmt::format("not finite at step {}: {} (loss {:.6g}, gradient norm {:.6g})", step.row.step,
                  find_non_finite(step), step.row.loss, step.row.grad_norm);
  if (!guard_.is_exhausted()) return log::warning("event=skip {}; no update was made", what);
  fail(ExitCode::kNumerical,
       "{}; {} steps in a row made no update (guard.max_consecutive_skips = {}): lower "
       "optimizer.learning_rate or resume from the last checkpoint with other data",
       what, guard_.state().consecutive_skips(), allowed);
}

void Trainer::report_stragglers(const QueuedStep& step) {
  std::vector<double> seconds;
  const double* const reports =
      step.results.data<double>() + grid_.sequence().size() * config_.train().batch_size();
  for (std::int64_t r = 0; r < grid_.world().size(); ++r) {
    seconds.push_back(reports[r * kRankReportSize + kComputeSeconds]);
  }
  for (const StragglerReport::Straggler& straggler : stragglers_.add(seconds)) {
    log::warning("event=straggler rank={} score={:.2f} seconds={:.4g} step={}", straggler.rank,
                 straggler.score, seconds[static_cast<std::size_t>(straggler.rank)], step.row.step);
  }
}

void Trainer::roll_back(std::int64_t from) {
  const dist::PhaseScope scope(record_, dist::Phase::kStart);
  gradient_sum_->wait_for_parameters(stream_);
  stream_.synchronize();
  saver_->wait();
  if (!resume("auto")) {
    fail(ExitCode::kNumerical,
         "a spike at step {} before the first checkpoint: there is nothing to roll back to; lower "
         "optimizer.learning_rate or set guard.spike_policy=SKIP",
         from);
  }
  guard_.roll_back(from, state_.guard, state_.step);
  state_.guard = guard_.state();
  take_up();
  log::warning("event=rolled_back from_step={} to_step={} passed_over_steps={} rollbacks={}", from,
               state_.step, state_.guard.passed_over_steps(), state_.guard.rollbacks());
  if (output_) output_->rolled_back(state_.step, from);
}

void Trainer::compare_replicas() {
  gradient_sum_->wait_for_parameters(stream_);
  stream_.synchronize();
  if (config_.guard().digest_interval_steps() == 0) return;
  std::vector<ReplicatedTensor> tensors;
  for (const Parameter& parameter : model_->parameters().all()) {
    tensors.push_back({parameter.name, parameter.value});
  }
  if (config_.parallel().zero() == config::ParallelConfig::ZERO_NONE) {
    for (const Parameter& parameter : model_->parameters().all()) {
      const std::int64_t end = parameter.begin + parameter.shape.numel();
      tensors.push_back(
          {"moment m of " + parameter.name, optimizer_.m().slice(parameter.begin, end)});
      tensors.push_back(
          {"moment v of " + parameter.name, optimizer_.v().slice(parameter.begin, end)});
    }
  }
  check_replicas(tensors, state_.step, grid_.world(), stream_);
}

}  // namespace ttt::launch
