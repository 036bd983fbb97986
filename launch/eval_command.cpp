#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>

#include "configs/run_config.h"
#include "data/files.h"
#include "dist/sequence_exchange.h"
#include "dist/watchdog.h"
#include "launch/commands.h"
#include "launch/device.h"
#include "launch/evaluation.h"
#include "launch/model_source.h"
#include "launch/stop_signal.h"
#include "launch/svg_plot.h"
#include "launch/trainer.h"

namespace ttt::launch {
namespace {

struct EvalOptions {
  std::string model;
  std::vector<std::string> data;
  std::vector<std::int64_t> contexts;
  std::int64_t num_windows = 0;
  std::int64_t micro_batch = 1;
  std::int64_t inner_windows = 8;
  std::int64_t sequence_ranks = 1;
  std::string output;
  std::string dtype = "f32";
  std::string device = "auto";
};

// Positions whose losses one plotted point averages: neighbours differ only by noise.
std::int64_t smoothing_width(std::int64_t length) { return std::max<std::int64_t>(1, length / 64); }

std::string position_csv(const PositionLosses& losses) {
  std::string csv = "position,loss,perplexity,tokens\n";
  for (std::size_t t = 0; t < losses.count.size(); ++t) {
    const double mean = losses.nll_sum[t] / losses.count[t];
    csv += fmt::format("{},{:.9g},{:.9g},{}\n", t, mean, std::exp(mean), losses.count[t]);
  }
  return csv;
}

std::string position_svg(const PositionLosses& losses) {
  const auto length = std::ssize(losses.count);
  const std::int64_t width = smoothing_width(length);
  Series series;
  for (std::int64_t t = 0; t < length; t += width) {
    series.x.push_back(static_cast<double>(t) + static_cast<double>(width) / 2);
    series.y.push_back(losses.mean(t, std::min<std::int64_t>(t + width, length)));
  }
  Plot plot;
  plot.title = "Held-out loss by token position";
  plot.x_label = "position in the context";
  plot.y_label = "loss (nats)";
  plot.series = {series};
  return render_svg(plot);
}

struct ContextLoss {
  std::int64_t context, windows;
  double loss;
};

std::string context_csv(const std::vector<ContextLoss>& losses) {
  std::string csv = "context_length,windows,loss,perplexity\n";
  for (const ContextLoss& row : losses) {
    csv += fmt::format("{},{},{:.9g},{:.9g}\n", row.context, row.windows, row.loss,
                       std::exp(row.loss));
  }
  return csv;
}

std::string context_svg(const std::vector<ContextLoss>& losses) {
  Series series;
  for (const ContextLoss& row : losses) {
    series.x.push_back(static_cast<double>(row.context));
    series.y.push_back(row.loss);
  }
  Plot plot;
  plot.title = "Held-out loss by context length";
  plot.x_label = "context length (tokens)";
  plot.y_label = "loss (nats)";
  plot.series = {series};
  plot.log_x = true;
  return render_svg(plot);
}

constexpr const char* kInnerKinds[] = {"at W_0", "before the step", "after the step"};

std::string inner_csv(const InnerLosses& losses) {
  std::string csv = "layer,position,loss_at_w0,loss_before_step,loss_after_step\n";
  for (std::int64_t layer = 0; layer < losses.num_layers; ++layer) {
    for (std::int64_t t = 0; t < losses.length; ++t) {
      csv += fmt::format("{},{},{:.9g},{:.9g},{:.9g}\n", layer, t, losses.mean(0, layer, t),
                         losses.mean(1, layer, t), losses.mean(2, layer, t));
    }
  }
  return csv;
}

// The paper's figure 4: the three curves of one layer.
std::string inner_svg(const InnerLosses& losses, std::int64_t layer) {
  Plot plot;
  plot.title = fmt::format("Inner loss of layer {}", layer);
  plot.x_label = "position";
  plot.y_label = "inner loss";
  const std::int64_t width = smoothing_width(losses.length);
  for (int kind = 0; kind < 3; ++kind) {
    Series series;
    series.name = kInnerKinds[kind];
    for (std::int64_t t = 0; t + width <= losses.length; t += width) {
      double sum = 0;
      for (std::int64_t i = 0; i < width; ++i) sum += losses.mean(kind, layer, t + i);
      series.x.push_back(static_cast<double>(t) + static_cast<double>(width) / 2);
      series.y.push_back(sum / static_cast<double>(width));
    }
    plot.series.push_back(series);
  }
  return render_svg(plot);
}

// Loss and perplexity at one context length, printed; by position where asked.
PositionLosses evaluate_context(const EvalOptions& options, const LanguageModel& model,
                                const HeldOut& set, const dist::ProcessGrid& grid,
                                Context context) {
  const config::RunConfig& config = set.config;
  const auto sequence = dist::make_sequence_exchange(sequence_split(config), grid.sequence());
  context.sequence = sequence.get();
  const BatchReader reader(config, data::Split::kValidation, sequence.get());
  const std::int64_t windows = options.num_windows > 0
                                   ? std::min(options.num_windows, reader.num_windows())
                                   : reader.num_windows();
  PositionLosses losses;
  const bool is_whole =
      visit_window_losses(model, reader, windows, options.micro_batch, grid, context,
                          [&](auto nll, auto mask) { losses.add(nll, mask); });
  if (!is_whole) fail(ExitCode::kStoppedEarly, "evaluation stopped on request");
  if (grid.world().rank() == 0) {
    std::cout << fmt::format("{}context {:>7} | windows {:>6} | loss {:.6f} | perplexity {:.4f}\n",
                             set.source.empty() ? "" : set.source + " | ",
                             config.data().context_length(), windows, losses.loss(),
                             std::exp(losses.loss()))
              << std::flush;
  }
  return losses;
}

void write_curves(const std::string& directory, const PositionLosses& losses,
                  const std::vector<ContextLoss>& contexts, const InnerLosses& inner) {
  data::make_output_directory(directory);
  data::write_file_atomically(directory + "/loss_by_context.csv", context_csv(contexts));
  data::write_file_atomically(directory + "/loss_by_context.svg", context_svg(contexts));
  data::write_file_atomically(directory + "/loss_by_position.csv", position_csv(losses));
  data::write_file_atomically(directory + "/loss_by_position.svg", position_svg(losses));
  if (inner.num_layers > 0) {
    data::write_file_atomically(directory + "/inner_loss.csv", inner_csv(inner));
    for (std::int64_t layer = 0; layer < inner.num_layers; ++layer) {
      data::write_file_atomically(fmt::format("{}/inner_loss_layer_{:02d}.svg", directory, layer),
                                  inner_svg(inner, layer));
    }
  }
  std::cout << fmt::format("curves: {}\n", directory);
}

ExitCode evaluate(const EvalOptions& options, dist::Communicator& communicator) {
  const ModelSource source = open_model_source(options.model);
  config::RunConfig config = source.config;
  if (!options.data.empty()) {
    config.mutable_data()->clear_sources();
    config.mutable_data()->mutable_validation()->Assign(options.data.begin(), options.data.end());
  }
  std::vector<std::int64_t> contexts = options.contexts;
  if (contexts.empty()) contexts.push_back(config.data().context_length());
  std::ranges::sort(contexts);
  if (contexts.front() < 1)
    fail(ExitCode::kUsage, "--context {}: must be positive", contexts.front());
  if (options.dtype != "f32" && options.dtype != "f64") {
    fail(ExitCode::kUsage, "--dtype {}: must be f32 or f64", options.dtype);
  }
  config.mutable_parallel()->set_sequence_ranks(options.sequence_ranks);
  std::vector<std::string> problems;
  for (const std::int64_t length : contexts) {
    config.mutable_data()->set_context_length(length);
    const auto found = config::find_sequence_problems(config, communicator.size());
    problems.insert(problems.end(), found.begin(), found.end());
  }
  config::throw_problems("ttt eval", problems);
  std::vector<HeldOut> sets = held_out_sets(config);
  if (sets.empty()) sets.push_back({"", 1, config});  // whose reader tells what is missing
  if (sets.size() > 1 && !options.output.empty()) {
    fail(ExitCode::kUsage, "-o {}: the run has {} sets of held-out tokens; name one with --data",
         options.output, sets.size());
  }
  use_threads(0, communicator);
  install_stop_handlers();
  const DType dtype = options.dtype == "f64" ? DType::kF64 : DType::kF32;
  Stream stream = open_stream(options.device, dtype, communicator);
  // As patient as the run was; flight records have no place here.
  dist::Watchdog watchdog(communicator, watchdog_options(config.watchdog(), {}));
  const dist::ProcessGrid grid(communicator, options.sequence_ranks);
  const auto model = load_model(source, dtype);
  watchdog.record().enter(dist::Phase::kEvaluation);
  Context context{stream, precision_of(config.train().precision())};
  PositionLosses losses;
  std::vector<ContextLoss> by_context;
  for (HeldOut& set : sets) {
    for (const std::int64_t length : contexts) {
      set.config.mutable_data()->set_context_length(length);
      losses = evaluate_context(options, *model, set, grid, context);
      by_context.push_back({length, losses.num_windows, losses.loss()});
    }
  }
  if (!options.output.empty() && grid.data().rank() == 0) {
    const config::RunConfig& longest = sets.front().config;
    const auto sequence = dist::make_sequence_exchange(sequence_split(longest), grid.sequence());
    context.sequence = sequence.get();
    const BatchReader reader(longest, data::Split::kValidation, sequence.get());
    const InnerLosses inner =
        inner_losses(*model, reader, std::min(options.inner_windows, reader.num_windows()),
                     grid.sequence(), context);
    if (communicator.rank() == 0) write_curves(options.output, losses, by_context, inner);
  }
  watchdog.finish();
  return ExitCode::kOk;
}

}  // namespace

void add_eval_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand(
      "eval", "Loss and perplexity on held-out text: overall, by context length, by position");
  command
      ->add_option("-m,--model", options->model,
                   "Checkpoint, run directory or Hugging Face directory")
      ->required();
  command->add_option("--data", options->data,
                      "Token files or a prepared directory; default: the run's validation data");
  command->add_option("--context", options->contexts,
                      "Context lengths to compare; default: that of training");
  command->add_option("--windows", options->num_windows, "First N windows; 0: all")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--micro-batch", options->micro_batch, "Windows a forward pass")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--inner-windows", options->inner_windows,
                   "Windows averaged for the inner-loss curves")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option(
      "-o,--output", options->output,
      "Directory for curves (CSV, SVG): loss by context length, by position at the "
      "longest, inner losses of TTT layers; a run directory adds them to its report");
  command
      ->add_option("--sequence-ranks", options->sequence_ranks,
                   "Ranks that hold a window together, each a segment of it")
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "f32 or f64")->capture_default_str();
  add_device_option(*command, options->device);
  command->callback([options, &action] {
    action = [options](dist::Communicator& communicator) {
      return evaluate(*options, communicator);
    };
  });
}

}  // namespace ttt::launch
