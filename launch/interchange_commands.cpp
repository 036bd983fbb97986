#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "configs/run_config.h"
#include "core/optimizer.h"
#include "data/interchange/huggingface.h"
#include "data/tokenizer/tokenizer.h"
#include "launch/checkpoint_saver.h"
#include "launch/commands.h"
#include "launch/model_source.h"
#include "launch/run_state.h"

namespace ttt::launch {
namespace {

struct ExportOptions {
  std::string model, output;
  bool bf16 = false;
};

struct ImportOptions {
  std::string model, output;
  std::int64_t context_length = 2048;
};

void export_model(const ExportOptions& options) {
  const ModelSource source = open_model_source(options.model);
  data::check_exportable(source.config.model());
  const auto model = load_model(source, DType::kF32);
  data::HfExport settings;
  settings.tokenizer = source.tokenizer;
  settings.context_length = source.config.data().context_length();
  settings.bf16 = options.bf16;
  const auto tokenizer = data::open_tokenizer(source.tokenizer);
  settings.bos_id = tokenizer->bos_id();
  settings.eos_id = tokenizer->eos_id();
  data::export_hf(options.output, source.config.model(), named_tensors(*model), settings);
  std::cout << fmt::format("{}: {} parameters in {}\n", options.output,
                           model->parameters().num_parameters(), options.bf16 ? "bf16" : "fp32");
}

// A Hugging Face model becomes a run directory with one checkpoint, at step 0.
void import_model(const ImportOptions& options, dist::Communicator& communicator) {
  ModelSource source = open_model_source(options.model);
  config::RunConfig config = source.config;
  config.set_output_directory(options.output);
  config.mutable_data()->set_context_length(options.context_length);
  config::throw_problems(options.model, config::find_model_problems(config.model()));
  const data::RunLock lock(options.output);
  if (!data::list_checkpoints(options.output).empty()) {
    fail(ExitCode::kLocked, "{} already has checkpoints", options.output);
  }
  const auto model = load_model(source, DType::kF32);
  const Optimizer optimizer(config.optimizer(), 0, model->parameters().num_elements(), DType::kF32);
  CheckpointSaver::Options settings;
  settings.run_directory = options.output;
  settings.tokenizer = source.tokenizer;
  Stream stream;
  CheckpointSaver(settings, flat_state(*model, optimizer), optimizer.ranges(), communicator)
      .begin(describe_run(config, {}, communicator.size()), stream);
  std::cout << fmt::format("{}: checkpoint of {} parameters\n", options.output,
                           model->parameters().num_parameters());
}

}  // namespace

void add_export_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<ExportOptions>();
  CLI::App* command =
      app.add_subcommand("export", "Checkpoint -> Hugging Face directory that needs nothing else");
  command->add_option("-m,--model", options->model, "Checkpoint or run directory")->required();
  command->add_option("-o,--output", options->output, "Directory to make")->required();
  command->add_flag("--bf16", options->bf16, "Weights in bfloat16");
  command->callback([options, &action] {
    action = [options](dist::Communicator& communicator) {
      if (communicator.rank() == 0) export_model(*options);
      return ExitCode::kOk;
    };
  });
}

void add_import_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<ImportOptions>();
  CLI::App* command = app.add_subcommand(
      "import", "Hugging Face directory (TTT or Llama) -> checkpoint with fresh optimiser state");
  command->add_option("-m,--model", options->model, "Hugging Face directory")->required();
  command->add_option("-o,--output", options->output, "Run directory to make")->required();
  command->add_option("--context", options->context_length, "Context length to record")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->callback([options, &action] {
    action = [options](dist::Communicator& communicator) {
      if (communicator.size() > 1) fail(ExitCode::kUsage, "ttt import runs on one rank");
      import_model(*options, communicator);
      return ExitCode::kOk;
    };
  });
}

}  // namespace ttt::launch
