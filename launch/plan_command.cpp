#include <google/protobuf/text_format.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "configs/run_config.h"
#include "data/files.h"
#include "launch/commands.h"
#include "launch/machine.h"
#include "launch/plan_report.h"

namespace ttt::launch {
namespace {

struct PlanOptions {
  std::string config;
  std::vector<std::string> overrides;
  std::string machine;
  bool measure = false;
  std::string write_machine;
  std::int64_t ranks = 0;
  bool as_configured = false;
  std::int64_t sweep = 0;
  std::string output;
};

constexpr std::int64_t kMostRanks = 1 << 20;

config::MachineConfig machine_of(const PlanOptions& options, const config::RunConfig& config,
                                 dist::Communicator& communicator) {
  if (options.measure == !options.machine.empty()) {
    fail(ExitCode::kUsage,
         "give either --machine FILE (launch/machines has some) or --measure for this machine");
  }
  if (!options.measure) {
    if (!options.write_machine.empty())
      fail(ExitCode::kUsage, "--write-machine writes what --measure found; it needs --measure");
    return load_machine(options.machine);
  }
  config::throw_problems("the configuration", config::find_problems(config, communicator.size()));
  const int threads = use_threads(config.train().num_threads(), communicator);
  config::MachineConfig machine = measure_machine(config, communicator, threads);
  if (!options.write_machine.empty() && communicator.rank() == 0) {
    std::string text;
    google::protobuf::TextFormat::PrintToString(machine, &text);
    data::write_file_atomically(options.write_machine, text);
  }
  return machine;
}

// The best way to run on 1, 2, 4, ... ranks.
void sweep(const PlanOptions& options, Planner& planner) {
  std::vector<Candidate> best;
  for (std::int64_t world = 1; world <= options.sweep; world *= 2) {
    std::vector<Candidate> candidates = planner.choose(world);
    if (candidates.front().runs()) {
      best.push_back(std::move(candidates.front()));
      continue;
    }
    std::cout << fmt::format("ranks {:>5} | {}: {}\n", world, candidates.front().describe(),
                             candidates.front().problem);
  }
  if (best.empty())
    fail(ExitCode::kUsage, "no number of ranks up to {} can run this", options.sweep);
  for (const Candidate& candidate : best) {
    std::cout << fmt::format("ranks {:>5} | {:<32} | step {:>9.4f} s | efficiency {:>5.1f} %\n",
                             candidate.world, candidate.describe(), candidate.time.step(),
                             100 * sweep_efficiency(candidate, best.front()));
  }
  if (options.output.empty()) return;
  data::make_output_directory(options.output);
  data::write_file_atomically(options.output + "/scaling.csv", sweep_csv(best, planner.machine()));
  data::write_file_atomically(options.output + "/scaling.svg", sweep_svg(best, planner.machine()));
}

ExitCode plan(const PlanOptions& options, dist::Communicator& communicator) {
  const std::int64_t ranks = options.ranks > 0 ? options.ranks : communicator.size();
  const config::RunConfig config = config::load_run_config(
      options.config, options.overrides, options.as_configured ? static_cast<int>(ranks) : 0);
  if (options.ranks > kMostRanks || options.sweep > kMostRanks)
    fail(ExitCode::kUsage, "--ranks and --sweep go up to {}", kMostRanks);
  Planner planner(config, machine_of(options, config, communicator));
  if (communicator.rank() != 0) return ExitCode::kOk;
  if (options.sweep > 0) {
    sweep(options, planner);
    return ExitCode::kOk;
  }
  const std::vector<Candidate> candidates =
      options.as_configured ? std::vector{planner.evaluate(config, ranks)} : planner.choose(ranks);
  const Candidate& best = candidates.front();
  if (best.memory.peak == 0 || (!options.as_configured && !best.runs())) {
    std::cout << choice_text(candidates);
    fail(ExitCode::kUsage, "{} ranks cannot run this: {}", ranks, best.problem);
  }
  const StepTrace& trace = planner.trace_of(best.config, ranks);
  std::cout << candidate_text(best, trace, planner.machine());
  if (options.as_configured && !best.runs()) {
    std::cout << fmt::format("does not fit         {}\n", best.problem);
  }
  if (!options.as_configured) std::cout << choice_text(candidates);
  std::cout << goodput_text(best, trace, planner.machine());
  return ExitCode::kOk;
}

}  // namespace

void add_plan_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command = app.add_subcommand(
      "plan", "Predicts memory, traffic and time of a run on a machine and chooses its grid");
  command->add_option("-c,--config", options->config, "Configuration (configs/*.textproto)");
  command->add_option("--set", options->overrides, "FIELD=VALUE; may be repeated");
  command->add_option("-m,--machine", options->machine,
                      "Machine (configs/machine.proto): launch/machines/*.textproto");
  command->add_flag("--measure", options->measure,
                    "Measure this machine instead, op by op, at this model's sizes");
  command->add_option("--write-machine", options->write_machine, "File for what --measure found");
  command->add_option("-n,--ranks", options->ranks, "Ranks; default: those that were started")
      ->check(CLI::PositiveNumber);
  command->add_flag("--as-configured", options->as_configured,
                    "Predict the configuration as it stands; choose nothing");
  command
      ->add_option("--sweep", options->sweep,
                   "Instead: the best way on 1, 2, 4, ... ranks up to this number")
      ->check(CLI::PositiveNumber);
  command->add_option("-o,--output", options->output,
                      "Directory for the sweep's scaling.csv and scaling.svg");
  command->callback([options, &action] {
    action = [options](dist::Communicator& communicator) { return plan(*options, communicator); };
  });
}

}  // namespace ttt::launch
