#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>
#include <thread>

#include "configs/run_config.h"
#include "core/base/log.h"
#include "data/checkpoint/run_lock.h"
#include "data/files.h"
#include "dist/transport.h"
#include "dist/watchdog.h"
#include "kernels/device_ops.h"
#include "kernels/threads.h"
#include "launch/agreement.h"
#include "launch/commands.h"
#include "launch/device.h"
#include "launch/placement.h"
#include "launch/plan_report.h"
#include "launch/stop_signal.h"
#include "launch/trainer.h"

namespace ttt::launch {
namespace {

struct TrainOptions {
  std::string config;
  std::vector<std::string> overrides;
  std::string order;
  std::string resume = "auto";
  std::string device = "auto";
  bool share_devices = false;
  bool dry_run = false;
  bool help_config = false;
};

// What a run would need, without data, weights or time.
void print_plan(const config::RunConfig& config, int num_ranks, const std::string& device) {
  const DType dtype = dtype_of(config.train().precision());
  const bool is_cuda = device == "auto" ? kernels::num_cuda_devices() > 0 && dtype != DType::kF64
                                        : device_of(device, dtype) == Device::kCuda;
  const StepTrace trace = trace_step(config, num_ranks, {is_cuda ? Device::kCuda : Device::kCpu});
  const auto tokens = static_cast<double>(config.train().batch_size()) *
                      static_cast<double>(config.data().context_length());
  const double steps = static_cast<double>(config.train().steps());
  std::cout << config::complete_text(config) << "\n"
            << fmt::format(
                   "parameters           {}\n"
                   "ranks                {} = {} data x {} sequence ({} of {} sequences each, "
                   "micro-batch {})\n"
                   "tokens a step        {:.0f}, over the run {:.4g}\n"
                   "FLOP a token         {:.4g} forward, {:.4g} training\n",
                   trace.num_parameters, num_ranks, num_ranks / config.parallel().sequence_ranks(),
                   config.parallel().sequence_ranks(),
                   config.train().batch_size() * config.parallel().sequence_ranks() / num_ranks,
                   config.train().batch_size(), config.train().micro_batch_size(), tokens,
                   tokens * steps, trace.flops_per_token, 3 * trace.flops_per_token)
            << documents_text(config) << memory_text(trace.memory)
            << fmt::format(
                   "checkpoint           {:.3f} GiB\n",
                   3.0 * static_cast<double>(trace.num_parameters * size_of(dtype)) / 1073741824.0);
}

// Ranks that differ would train something, and nobody could say what.
void expect_agreement(const TrainOptions& options, const config::RunConfig& config,
                      dist::Communicator& communicator) {
  if (communicator.size() == 1) return;
  expect_same(communicator, "the program", program_digest(), "install one build on every host");
  expect_same(communicator, "the configuration",
              fmt::format("{}--resume {}\n--device {}\n", config::complete_text(config),
                          options.resume, options.device),
              "give every rank the same command and the same files");
}

void check_placement(const RankPlace& mine, bool share_devices, dist::Communicator& communicator) {
  const std::vector<RankPlace> places = gather_places(communicator, mine);
  if (!share_devices) refuse_shared_devices(places);
  for (const std::string& line : host_lines(places)) log::info("{}", line);
  for (const std::string& warning : placement_warnings(places)) log::warning("{}", warning);
}

ExitCode train(const TrainOptions& options, dist::Communicator& communicator) {
  if (options.help_config) {
    if (communicator.rank() == 0) std::cout << config::schema_text();
    return ExitCode::kOk;
  }
  config::RunConfig config;
  run_together(communicator, [&] {
    std::vector<std::string> overrides = options.overrides;
    if (!options.order.empty()) overrides.push_back("data.order_file=" + options.order);
    config = config::load_run_config(options.config, overrides, communicator.size());
  });
  if (options.dry_run) {
    if (communicator.rank() == 0) print_plan(config, communicator.size(), options.device);
    return ExitCode::kOk;
  }
  expect_agreement(options, config, communicator);
  Stream stream = open_stream(options.device, dtype_of(config.train().precision()), communicator);
  install_stop_handlers();
  const std::string& run = config.output_directory();
  std::unique_ptr<data::RunLock> lock;
  if (communicator.rank() == 0) {
    lock = std::make_unique<data::RunLock>(run);
    data::make_output_directory(run + "/logs");
  }
  communicator.barrier();
  log::configure(communicator.rank(),
                 fmt::format("{}/logs/rank_{:05d}.log", run, communicator.rank()));
  const int threads = use_threads(config.train().num_threads(), communicator);
  log::info("training config={} ranks={} device={} threads_per_rank={} output={}", options.config,
            communicator.size(), name_of(stream.device()), threads, run);
  check_placement(my_place(threads, kernels::device_id(stream)), options.share_devices,
                  communicator);
  dist::Watchdog watchdog(communicator,
                          watchdog_options(config.watchdog(), config.output_directory() + "/logs"));
  const std::unique_ptr<dist::Communicator> of_devices =
      dist::make_device_communicator(communicator, stream);
  Trainer trainer(config, options.resume, std::move(stream),
                  of_devices ? *of_devices : communicator, watchdog.record());
  if (communicator.rank() == 0) {
    data::write_file_atomically(run + "/config.textproto", config::complete_text(config));
  }
  const ExitCode code = trainer.run();
  watchdog.finish();
  return code;
}

}  // namespace

dist::WatchdogOptions watchdog_options(const config::WatchdogConfig& config,
                                       const std::string& directory) {
  return {config.silence_seconds(),
          {config.start_seconds(), config.step_seconds(), config.evaluation_seconds(),
           config.checkpoint_seconds()},
          directory};
}

// Bound ranks use what they are bound to; unbound ranks of one machine share its processors.
int use_threads(std::int64_t requested, const dist::Communicator& communicator) {
  const int usable = kernels::num_usable_processors();
  const int processors = std::max(usable, static_cast<int>(std::thread::hardware_concurrency()));
  const int share = std::max(1, processors / std::max(1, communicator.local_size()));
  const int threads = requested > 0 ? static_cast<int>(requested) : std::min(usable, share);
  kernels::set_num_threads(threads);
  return threads;
}

void add_train_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<TrainOptions>();
  CLI::App* command = app.add_subcommand(
      "train", "Trains a model. The run directory gets checkpoints, metrics and a report");
  command->add_option("-c,--config", options->config,
                      "Configuration (configs/*.textproto; every field: --help-config)");
  command->add_option("--set", options->overrides,
                      "FIELD=VALUE, e.g. --set optimizer.learning_rate=1e-3; may be repeated");
  command->add_option("--order", options->order,
                      "Take the training windows in the order of this file: numbers as text, or "
                      ".npy (data.order_file)");
  command
      ->add_option("--resume", options->resume,
                   "auto: from the newest good checkpoint of the run, if any; never; or a path")
      ->capture_default_str();
  add_device_option(*command, options->device);
  command->add_flag("--share-devices", options->share_devices,
                    "Let several ranks compute on one CUDA device; refused without it");
  command->add_flag("--dry-run", options->dry_run,
                    "Check the configuration and print what the run would need; reads no data");
  command->add_flag("--help-config", options->help_config,
                    "Print every field of a configuration, its default and what it does");
  command->callback([options, &action] {
    action = [options](dist::Communicator& communicator) { return train(*options, communicator); };
  });
}

}  // namespace ttt::launch
