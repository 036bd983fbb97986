#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "core/base/timer.h"
#include "core/decoder.h"
#include "data/files.h"
#include "data/tokenizer/tokenizer.h"
#include "launch/commands.h"
#include "launch/device.h"
#include "launch/model_source.h"
#include "launch/token_choice.h"

namespace ttt::launch {
namespace {

constexpr std::int64_t kMaxPromptBytes = std::int64_t{64} << 20;

struct GenerateOptions {
  std::string model, prompt, prompt_file, tokenizer;
  std::int64_t max_new_tokens = 200;
  TokenChoice choice;
  std::uint64_t seed = 0;
  bool ignore_eos = false;
  bool quiet = false;
  std::string device = "auto";
};

std::unique_ptr<data::Tokenizer> tokenizer_of(const GenerateOptions& options,
                                              const ModelSource& source) {
  auto tokenizer =
      data::open_tokenizer(options.tokenizer.empty() ? source.tokenizer : options.tokenizer);
  if (tokenizer->vocab_size() > source.config.model().vocab_size()) {
    fail(ExitCode::kUsage,
         "the tokenizer has {} pieces but the model only {} tokens; name the model's own with "
         "--tokenizer",
         tokenizer->vocab_size(), source.config.model().vocab_size());
  }
  return tokenizer;
}

void generate(const GenerateOptions& options, const dist::Communicator& communicator) {
  check_token_choice(options.choice);
  if (options.max_new_tokens < 0) {
    fail(ExitCode::kUsage, "--max-new-tokens {}: must not be negative", options.max_new_tokens);
  }
  const ModelSource source = open_model_source(options.model);
  const auto tokenizer = tokenizer_of(options, source);
  const std::string prompt = options.prompt_file.empty()
                                 ? options.prompt
                                 : data::read_text_file(options.prompt_file, kMaxPromptBytes);
  Stream stream = open_stream(options.device, DType::kF32, communicator);
  const auto model = load_model(source, DType::kF32);
  std::vector<std::int32_t> ids = tokenizer->encode(prompt);
  ids.insert(ids.begin(), tokenizer->bos_id());
  Tensor next({1, static_cast<std::int64_t>(ids.size())}, DType::kI64);
  std::ranges::copy(ids, next.data<std::int64_t>());

  Context context{stream, kernels::Precision::kNative};
  auto decoding = std::make_unique<Decoder>(*model, 1, context);
  const CounterRng rng(options.seed, "generate");
  data::StreamingDecoder decoder(*tokenizer, prompt.empty());
  std::cout << prompt << std::flush;
  const Timer prefill_timer;
  Tensor logits = decoding->prefill(next, false);
  const double prefill_seconds = prefill_timer.seconds();
  const Timer decode_timer;
  std::int64_t count = 0;
  for (; count < options.max_new_tokens; ++count) {
    const Tensor wide = to_dtype(logits, DType::kF64);
    const std::int64_t id =
        choose_token(wide.span<double>(), options.choice, rng, static_cast<std::uint64_t>(count));
    if (id == tokenizer->eos_id() && !options.ignore_eos) break;
    // A vocabulary padded beyond the tokenizer's pieces has ids without text.
    if (id < tokenizer->vocab_size()) {
      std::cout << decoder.push(static_cast<std::int32_t>(id)) << std::flush;
    }
    const config::DataConfig& data = source.config.data();
    if (data.reset_at_bos() && id == data.masked_target())
      decoding = std::make_unique<Decoder>(*model, 1, context);
    next = Tensor({1, 1}, DType::kI64);
    next.data<std::int64_t>()[0] = id;
    logits = decoding->step(next);
  }
  std::cout << decoder.finish() << "\n" << std::flush;
  if (!options.quiet) {
    std::cerr << fmt::format(
        "[prompt {} tokens in {:.2f} s ({:.1f} tokens/s), generated {} in {:.2f} s ({:.1f} "
        "tokens/s)]\n",
        ids.size(), prefill_seconds, static_cast<double>(ids.size()) / prefill_seconds, count,
        decode_timer.seconds(), static_cast<double>(count) / decode_timer.seconds());
  }
}

}  // namespace

void add_generate_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command =
      app.add_subcommand("generate", "Continues a prompt, token by token in constant memory");
  command
      ->add_option("-m,--model", options->model,
                   "Checkpoint, run directory or Hugging Face directory")
      ->required();
  auto* prompt = command->add_option("-p,--prompt", options->prompt, "Text to continue");
  command->add_option("--prompt-file", options->prompt_file, "File with the text to continue")
      ->excludes(prompt);
  command->add_option("--tokenizer", options->tokenizer,
                      "SentencePiece model or tokenizer.json, when the model has none beside it");
  command->add_option("-n,--max-new-tokens", options->max_new_tokens, "Tokens to generate at most")
      ->capture_default_str();
  command->add_option("--temperature", options->choice.temperature, "0 takes the most likely token")
      ->capture_default_str();
  command->add_option("--top-k", options->choice.top_k, "Choose among the K most likely; 0: all")
      ->capture_default_str();
  command
      ->add_option("--top-p", options->choice.top_p,
                   "Choose among the most likely that together have probability P")
      ->capture_default_str();
  command->add_option("--seed", options->seed, "The same seed gives the same text")
      ->capture_default_str();
  command->add_flag("--ignore-eos", options->ignore_eos, "Do not stop at the end of a document");
  add_device_option(*command, options->device);
  command->add_flag("-q,--quiet", options->quiet, "No timing line");
  command->callback([options, &action] {
    action = [options](dist::Communicator& communicator) {
      use_threads(0, communicator);
      if (communicator.rank() == 0) generate(*options, communicator);
      return ExitCode::kOk;
    };
  });
}

}  // namespace ttt::launch
