#include <CLI/CLI.hpp>
#include <memory>

#include "launch/commands.h"
#include "launch/probe.h"

namespace ttt::launch {
namespace {

using Probe = void (*)(const ProbeOptions&);

CLI::App* add_verb(CLI::App& probe, const std::string& name, const std::string& description,
                   Probe run, const std::shared_ptr<ProbeOptions>& options, Action& action) {
  CLI::App* verb = probe.add_subcommand(name, description);
  verb->add_option("--model", options->model, "Hugging Face directory")->required();
  verb->add_option("--input", options->input, "safetensors file")->required();
  verb->add_option("--output", options->output, "safetensors file to write")->required();
  verb->add_option("--dtype", options->dtype, "f64, f32 or bf16")->capture_default_str();
  verb->add_option("--device", options->device, "cpu or cuda")->capture_default_str();
  verb->callback([options, run, &action] {
    action = [options, run](dist::Communicator& communicator) {
      use_threads(0, communicator);
      if (communicator.rank() == 0) run(*options);
      return ExitCode::kOk;
    };
  });
  return verb;
}

}  // namespace

void add_probe_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<ProbeOptions>();
  CLI::App* probe = app.add_subcommand(
      "probe",
      "Numbers for comparison with other implementations (docs/architecture.md, section 4)");
  probe->require_subcommand(1);
  add_verb(*probe, "loss", "Logits, loss and gradients", probe_loss, options, action)
      ->add_flag("--gradients", options->gradients, "Write grad.NAME for every weight");
  add_verb(*probe, "layer", "One TTT layer: output, gradients, final fast weights", probe_layer,
           options, action);
  add_verb(*probe, "generate", "Greedy decoding", probe_generate, options, action)
      ->add_option("--max-new-tokens", options->max_new_tokens, "Decode steps")
      ->required();
  add_verb(*probe, "train", "Training steps on given batches", probe_train, options, action)
      ->add_option("--set", options->overrides, "optimizer.FIELD=VALUE; may be repeated");
}

}  // namespace ttt::launch
