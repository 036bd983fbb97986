#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "core/base/timer.h"
#include "data/tokens/prepare.h"
#include "launch/commands.h"
#include "launch/progress_line.h"

namespace ttt::launch {
namespace {

// Twice a second in place on a terminal; elsewhere a line now and then, for logs.
class PrepareDisplay {
 public:
  PrepareDisplay() = default;
  PrepareDisplay(const PrepareDisplay&) = delete;
  PrepareDisplay& operator=(const PrepareDisplay&) = delete;
  ~PrepareDisplay() {
    if (is_open_) std::cerr << std::endl;
  }
  void show(const data::PrepareProgress& progress) {
    const bool in_place = columns_ > 0;
    if (timer_.seconds() < (in_place ? 0.5 : 30)) return;
    timer_.restart();
    std::cerr << fmt::format("{}{} documents, {} tokens{}", in_place ? "\r\x1b[2K" : "",
                             format_count(static_cast<double>(progress.documents)),
                             format_count(static_cast<double>(progress.tokens)),
                             in_place ? "" : "\n");
    is_open_ = in_place;
  }

 private:
  Timer timer_;
  int columns_ = terminal_columns(STDERR_FILENO);
  bool is_open_ = false;
};

config::CorpusManifest prepare(const data::PrepareOptions& options) {
  PrepareDisplay display;
  return data::prepare_corpus(
      options, [&](const data::PrepareProgress& progress) { display.show(progress); });
}

}  // namespace

void add_prepare_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<data::PrepareOptions>();
  CLI::App* command = app.add_subcommand(
      "prepare", "Text to token shards: .txt, .jsonl and .jsonl.zst files or directories of them");
  command->add_option("inputs", options->inputs, "Files or directories")->required();
  command->add_option("-o,--output", options->output_directory, "Directory to make")->required();
  command->add_option("--validation", options->validation_inputs,
                      "Files or directories held out whole");
  command
      ->add_option("--validation-fraction", options->validation_fraction,
                   "Else: this share of the documents, by a seeded hash")
      ->capture_default_str();
  command->add_option("--validation-every", options->validation_every, "Else: every N-th document");
  command->add_option("--seed", options->seed, "Of that hash")->capture_default_str();
  command->add_option("--tokenizer", options->tokenizer, "SentencePiece model, or \"bytes\"")
      ->capture_default_str();
  command->add_option("--train-tokenizer", options->train_vocab_size,
                      "Train a SentencePiece BPE model of this many pieces on the training text");
  command->add_option("--text-field", options->fields.text, "Field of the JSON objects")
      ->capture_default_str();
  command->add_option("--shard-tokens", options->shard_tokens, "Tokens a shard")
      ->capture_default_str();
  options->num_threads = 0;
  command->add_option("--threads", options->num_threads, "Tokenizing threads; 0: one a processor");
  command->callback([options, &action] {
    action = [options](dist::Communicator& communicator) {
      if (communicator.rank() != 0) return ExitCode::kOk;
      if (options->num_threads <= 0) options->num_threads = use_threads(0, communicator);
      const config::CorpusManifest manifest = prepare(*options);
      std::cout << fmt::format(
          "{}: {} training tokens in {} documents, {} validation tokens in {} documents, "
          "vocabulary {}\n",
          options->output_directory, manifest.train_tokens(), manifest.train_documents(),
          manifest.validation_tokens(), manifest.validation_documents(), manifest.vocab_size());
      return ExitCode::kOk;
    };
  });
}

}  // namespace ttt::launch
