#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>

#include "configs/run_config.h"
#include "core/model.h"
#include "data/checkpoint/checkpoint.h"
#include "data/files.h"
#include "data/interchange/safetensors.h"
#include "data/tokens/prepare.h"
#include "data/tokens/token_file.h"
#include "launch/commands.h"
#include "launch/inspect_data.h"
#include "launch/model_source.h"
#include "launch/report.h"
#include "launch/run_comparison.h"

namespace ttt::launch {
namespace {

namespace fs = std::filesystem;

void inspect_safetensors(const std::string& path) {
  const data::SafetensorsFile file = data::SafetensorsFile::open(path);
  for (const auto& [key, value] : file.metadata())
    std::cout << fmt::format("# {}: {}\n", key, value);
  std::int64_t elements = 0;
  for (const std::string& name : file.names()) {
    const data::SafetensorsInfo info = file.info(name);
    elements += info.shape.numel();
    std::cout << fmt::format("{:<6} {:<20} {}\n", name_of(info.dtype), info.shape.str(), name);
  }
  std::cout << fmt::format("{} tensors, {} elements\n", file.names().size(), elements);
}

// Whether all is well.
bool inspect_tokens(const DataInspection& inspection, bool verify) {
  const bool is_equal = inspect_data(inspection);
  if (!verify) return is_equal;
  const auto tokens = data::TokenArray::open({inspection.path}, inspection.split);
  if (tokens.vocab_size() > 0) {
    tokens.verify(tokens.vocab_size());
    std::cout << "every token is inside the vocabulary\n";
  } else {
    tokens.verify(data::kMaxVocabSize);
    std::cout << "every token can be read; the vocabulary is not stated\n";
  }
  return is_equal;
}

void inspect_checkpoint(const std::string& directory, bool verify) {
  const config::CheckpointManifest manifest = data::read_manifest(directory);
  std::cout << fmt::format("checkpoint of step {} ({} tokens), saved by {} ranks, {}\n",
                           manifest.step(), manifest.tokens(), manifest.world_size(),
                           manifest.dtype());
  std::cout << config::complete_text(manifest.config());
  std::int64_t elements = 0;
  for (const auto& tensor : manifest.tensors()) {
    const Shape shape(std::span<const std::int64_t>(tensor.shape().data(),
                                                    static_cast<std::size_t>(tensor.shape_size())));
    elements += shape.numel();
    std::cout << fmt::format("{:<20} {}\n", shape.str(), tensor.name());
  }
  std::cout << fmt::format("{} tensors, {} parameters\n", manifest.tensors_size(), elements);
  if (verify) {
    data::verify_checkpoint(directory, manifest);
    std::cout << "all digests agree\n";
  }
}

// A prepared corpus and a checkpoint both have a manifest; only the corpus counts documents.
bool is_corpus(const std::string& path) {
  const std::string manifest = path + "/manifest.textproto";
  if (!fs::exists(manifest)) return false;
  const std::string text = data::read_text_file(manifest, std::int64_t{64} << 20);
  return text.find("train_documents") != std::string::npos;
}

bool inspect_corpus(const DataInspection& inspection, bool verify) {
  const bool shows_part =
      inspection.window >= 0 || inspection.shows_lengths || !inspection.other.empty();
  const auto manifest = data::read_corpus_manifest(inspection.path);
  if (!shows_part) std::cout << manifest.DebugString();
  const bool is_equal = inspect_data(inspection);
  if (verify) {
    data::verify_corpus(inspection.path);
    std::cout << "all digests agree and every token is inside the vocabulary\n";
  }
  return is_equal;
}

bool inspect(const DataInspection& inspection, bool verify) {
  const std::string& path = inspection.path;
  if (is_token_data(path)) return inspect_tokens(inspection, verify);
  if (!fs::exists(path)) fail(ExitCode::kMissingInput, "{} does not exist", path);
  if (is_corpus(path)) return inspect_corpus(inspection, verify);
  if (inspection.window >= 0 || inspection.shows_lengths || !inspection.other.empty()) {
    fail(ExitCode::kUsage,
         "{} holds no tokens: --window, --lengths and --compare are for token files", path);
  }
  const std::string suffix = fs::path(path).extension().string();
  if (fs::exists(path + "/config.json")) {
    const ModelSource source = open_model_source(path);
    std::cout << config::complete_text(source.config);
    inspect_safetensors(path + "/model.safetensors");
  } else if (fs::is_directory(path)) {
    inspect_checkpoint(open_model_source(path).directory, verify);
  } else if (suffix == ".safetensors") {
    inspect_safetensors(path);
  } else if (suffix == ".textproto") {
    const config::RunConfig config = config::load_run_config(path, {}, 0);
    std::cout << config::complete_text(config);
    const LanguageModel model(config.model(), config.data().context_length());
    std::cout << fmt::format("# {} parameters\n", model.parameters().num_parameters());
    if (inspection.num_samples > 0) inspect_samples(config, inspection.num_samples);
  } else {
    fail(ExitCode::kUsage,
         "{}: expected a directory, or a .safetensors, .h5, .npy, .bin or .textproto file", path);
  }
  return true;
}

}  // namespace

void add_inspect_command(CLI::App& app, Action& action) {
  auto inspection = std::make_shared<DataInspection>();
  auto verify = std::make_shared<bool>(false);
  auto held_out = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand(
      "inspect", "Prints a checkpoint, corpus, token file, configuration or safetensors file");
  command->add_option("path", inspection->path, "File or directory")->required();
  command->add_flag("--verify", *verify, "Read everything and check digests and tokens");
  command->add_flag("--validation", *held_out, "Of token directories: the validation split");
  command->add_option("--window", inspection->window, "Show this window of the tokens, from 0")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--context-length", inspection->context_length, "Tokens a window")
      ->capture_default_str();
  command->add_option("--masked-target", inspection->masked_target, "Target without loss; -1: none")
      ->capture_default_str();
  command->add_flag("--documents", inspection->by_documents,
                    "The window is one of data.windows = DOCUMENTS");
  command
      ->add_option("--samples", inspection->num_samples,
                   "Of a configuration: which windows its first N samples are, of which source")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--ids", inspection->shows_ids, "Show the window's ids, not its text");
  command->add_option("--tokenizer", inspection->tokenizer,
                      "Of token files that have none beside them");
  command->add_flag("--lengths", inspection->shows_lengths, "Count documents by length");
  command->add_option("--compare", inspection->other,
                      "Token files to compare with, token by token; 65 if they differ");
  command->callback([inspection, verify, held_out, &action] {
    action = [inspection, verify, held_out](dist::Communicator& communicator) {
      if (communicator.rank() != 0) return ExitCode::kOk;
      if (*held_out) inspection->split = data::Split::kValidation;
      return inspect(*inspection, *verify) ? ExitCode::kOk : ExitCode::kCorruptInput;
    };
  });
}

void add_report_command(CLI::App& app, Action& action) {
  auto runs = std::make_shared<std::vector<std::string>>();
  auto comparison = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "report", "Draws RUN/report.html again, with curves made since; compares runs");
  command->add_option("runs", *runs, "Run directories")->required();
  command->add_option("--compare", *comparison,
                      "Instead: this SVG with the held-out losses of all the runs against tokens");
  command->callback([runs, comparison, &action] {
    action = [runs, comparison](dist::Communicator& communicator) {
      if (communicator.rank() != 0) return ExitCode::kOk;
      if (!comparison->empty()) {
        write_comparison(*runs, *comparison);
        std::cout << *comparison << "\n";
        return ExitCode::kOk;
      }
      for (const std::string& run : *runs) {
        write_report(run, data::read_text_file(run + "/config.textproto", std::int64_t{1} << 20));
        std::cout << run << "/report.html\n";
      }
      return ExitCode::kOk;
    };
  });
}

}  // namespace ttt::launch
