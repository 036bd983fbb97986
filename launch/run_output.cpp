#include "launch/run_output.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>

#include "configs/run_config.h"
#include "core/base/memory.h"
#include "launch/report.h"

namespace ttt::launch {
namespace {

std::string metrics_path(const config::RunConfig& config) {
  return config.output_directory() + "/metrics.jsonl";
}

// Wall time that the rows kept on resume account for.
double seconds_before(const std::string& path, std::int64_t resume_step) {
  double seconds = 0;
  if (!std::filesystem::exists(path)) return seconds;
  for (const MetricsRow& row : read_metrics(path)) {
    if (row.kind == "train" && row.step <= resume_step) seconds = row.number("wall_seconds");
  }
  return seconds;
}

}  // namespace

RunOutput::RunOutput(const config::RunConfig& config, std::int64_t resume_step, int num_ranks,
                     std::int64_t num_parameters, double train_flops_per_token)
    : config_(config),
      num_ranks_(num_ranks),
      train_flops_per_token_(train_flops_per_token),
      metrics_(metrics_path(config), resume_step),
      tensorboard_(config.output_directory(), resume_step),
      // A launcher gives rank 0 a terminal of its own, whatever its output goes to.
      progress_(std::cout, num_ranks == 1 ? terminal_columns(STDOUT_FILENO) : 0),
      earlier_seconds_(seconds_before(metrics_path(config), resume_step)) {
  metrics_.write(
      {resume_step,
       "run",
       {{"parameters", num_parameters}, {"num_ranks", static_cast<std::int64_t>(num_ranks)}}});
}

void RunOutput::train_step(const Step& step) {
  const double step_tokens = static_cast<double>(config_.train().batch_size()) *
                             static_cast<double>(config_.data().context_length());
  const double tokens_per_second = step_tokens / step.seconds;
  MetricsRow row{step.step,
                 "train",
                 {{"loss", step.loss},
                  {"learning_rate", step.learning_rate},
                  {"grad_norm", step.grad_norm},
                  {"tokens", step.tokens},
                  {"tokens_per_second", tokens_per_second},
                  {"data_seconds", step.data_seconds},
                  {"communication_seconds", step.communication_seconds},
                  {"exposed_communication_seconds", step.exposed_seconds},
                  {"wall_seconds", earlier_seconds_ + wall_.seconds()}}};
  for (const auto& [source, tokens] : step.source_tokens) {
    row.values.emplace_back("tokens_" + source, tokens);
  }
  if (step.skipped != nullptr) row.values.emplace_back("skipped", std::string(step.skipped));
  metrics_.write(row);
  const std::pair<std::string, double> scalars[] = {{"train/loss", step.loss},
                                                    {"train/learning_rate", step.learning_rate},
                                                    {"train/grad_norm", step.grad_norm},
                                                    {"train/tokens_per_second", tokens_per_second}};
  tensorboard_.write(step.step, scalars);

  interval_.step += 1;
  interval_.seconds += step.seconds;
  interval_.data_seconds += step.data_seconds;
  interval_.exposed_seconds += step.exposed_seconds;
  const std::int64_t last = config_.train().steps();
  if (step.step % config_.log().interval_steps() != 0 && step.step != last) return;
  Progress progress;
  progress.step = step.step;
  progress.num_steps = last;
  progress.loss = step.loss;
  progress.learning_rate = step.learning_rate;
  progress.grad_norm = step.grad_norm;
  progress.num_ranks = num_ranks_;
  const double rate = step_tokens * static_cast<double>(interval_.step) / interval_.seconds;
  progress.tokens_per_second = rate;
  progress.flops_per_second = rate * train_flops_per_token_ / num_ranks_;
  if (config_.log().peak_flops() > 0) progress.peak_flops = config_.log().peak_flops();
  progress.memory_bytes = static_cast<double>(memory::peak_bytes());
  progress.data_share = interval_.data_seconds / interval_.seconds;
  progress.communication_share = interval_.exposed_seconds / interval_.seconds;
  progress.seconds_left = interval_.seconds / static_cast<double>(interval_.step) *
                          static_cast<double>(last - step.step);
  progress_.show(progress);
  interval_ = {};
}

void RunOutput::validation(std::int64_t step, double loss, const BySource& sources) {
  MetricsRow row{step, "eval", {{"loss", loss}, {"perplexity", std::exp(loss)}}};
  BySource scalars = {{"eval/loss", loss}, {"eval/perplexity", std::exp(loss)}};
  std::string line =
      fmt::format("step {} | validation loss {:.4f} | ppl {:.2f}", step, loss, std::exp(loss));
  for (const auto& [source, of_source] : sources) {
    row.values.emplace_back("loss_" + source, of_source);
    scalars.emplace_back("eval/loss_" + source, of_source);
    line += fmt::format(" | {} {:.4f}", source, of_source);
  }
  metrics_.write(row);
  tensorboard_.write(step, scalars);
  progress_.finish();
  std::cout << line << std::endl;
}

bool RunOutput::has_validation(std::int64_t step) const {
  return std::ranges::any_of(read_metrics(metrics_path(config_)), [&](const MetricsRow& row) {
    return row.kind == "eval" && row.step == step;
  });
}

// Of the step after, so that a run killed before its next checkpoint drops the row and repeats the rollback.
void RunOutput::rolled_back(std::int64_t to, std::int64_t from) {
  metrics_.write({to + 1, "rollback", {{"from_step", from}}});
}

void RunOutput::before_checkpoint() { metrics_.sync(); }

void RunOutput::finish() {
  progress_.finish();
  write_report(config_.output_directory(), config::complete_text(config_));
}

}  // namespace ttt::launch
