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
#include "kernels/threads.h"
#include "launch/commands.h"
#include "launch/device.h"
#include "launch/stop_signal.h"
#include "launch/trainer.h"

namespace ttt::launch {
namespace {

struct TrainOptions {
  std::string config;
  std::vector<std::string> overrides;
  std::string resume = "auto";
  std::string device = "auto";
  bool dry_run = false;
  bool help_config = false;
};

double gib(double bytes) { return bytes / 1073741824.0; }

// What a run would need, without data, weights or time.
void print_plan(const config::RunConfig& config, int num_ranks) {
  const LanguageModel model(config.model(), config.data().context_length());
  const auto parameters = static_cast<double>(model.parameters().num_elements());
  const auto batch = static_cast<double>(config.train().batch_size());
  const auto context = static_cast<double>(config.data().context_length());
  const double element = config.train().precision() == config::FP64 ? 8 : 4;
  // Gradient buffers: the shard at work, and the subtrees of the fixed tree that wait for their neighbours.
  double pending = 1;
  const std::int64_t data_ranks = num_ranks / config.parallel().sequence_ranks();
  for (std::int64_t s = config.parallel().virtual_shards() / data_ranks; s > 1; s /= 2)
    pending += 1;
  const bool shards_moments = config.parallel().zero() == config::ParallelConfig::ZERO_OPTIMIZER;
  const double moment_parts = shards_moments ? num_ranks : 1;
  const double flops = model.flops_per_token(config.data().context_length());
  std::cout << config::complete_text(config) << "\n"
            << fmt::format(
                   "parameters           {}\n"
                   "ranks                {} = {} data x {} sequence ({} of {} sequences each, "
                   "micro-batch {})\n"
                   "tokens a step        {:.0f}, over the run {:.4g}\n"
                   "FLOP a token         {:.4g} forward, {:.4g} training\n"
                   "memory a rank        parameters {:.3f} GiB, gradients {:.3f}, moments {:.3f} "
                   "(activations come on top)\n"
                   "checkpoint           {:.3f} GiB\n",
                   model.parameters().num_elements(), num_ranks, data_ranks,
                   config.parallel().sequence_ranks(), config.train().batch_size() / data_ranks,
                   config.train().batch_size(), config.train().micro_batch_size(), batch * context,
                   batch * context * static_cast<double>(config.train().steps()), flops, 3 * flops,
                   gib(parameters * element), gib(parameters * element * pending),
                   gib(2 * parameters * element / moment_parts), gib(3 * parameters * element));
}

ExitCode train(const TrainOptions& options, dist::Communicator& communicator) {
  if (options.help_config) {
    if (communicator.rank() == 0) std::cout << config::schema_text();
    return ExitCode::kOk;
  }
  const config::RunConfig config =
      config::load_run_config(options.config, options.overrides, communicator.size());
  if (options.dry_run) {
    if (communicator.rank() == 0) print_plan(config, communicator.size());
    return ExitCode::kOk;
  }
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
  const std::unique_ptr<dist::Communicator> of_devices =
      dist::make_device_communicator(communicator, stream);
  Trainer trainer(config, options.resume, std::move(stream),
                  of_devices ? *of_devices : communicator);
  if (communicator.rank() == 0) {
    data::write_file_atomically(run + "/config.textproto", config::complete_text(config));
  }
  return trainer.run();
}

}  // namespace

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
  command
      ->add_option("--resume", options->resume,
                   "auto: from the newest good checkpoint of the run, if any; never; or a path")
      ->capture_default_str();
  add_device_option(*command, options->device);
  command->add_flag("--dry-run", options->dry_run,
                    "Check the configuration and print what the run would need; reads no data");
  command->add_flag("--help-config", options->help_config,
                    "Print every field of a configuration, its default and what it does");
  command->callback([options, &action] {
    action = [options](dist::Communicator& communicator) { return train(*options, communicator); };
  });
}

}  // namespace ttt::launch
