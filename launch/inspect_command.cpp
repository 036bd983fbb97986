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

void inspect_tokens(const std::string& path, bool verify) {
  const data::TokenFileInfo info = data::read_token_file_info(path);
  std::cout << fmt::format("{}: {} tokens of {} bytes, {} documents, vocabulary {}\n", path,
                           info.num_tokens, info.token_bytes, info.num_documents,
                           info.vocab_size > 0 ? std::to_string(info.vocab_size) : "not stated");
  if (verify && info.vocab_size > 0) {
    data::TokenArray::open({path}, data::Split::kTrain).verify(info.vocab_size);
    std::cout << "every token is inside the vocabulary\n";
  }
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

void inspect_directory(const std::string& path, bool verify) {
  const std::string manifest = path + "/manifest.textproto";
  if (!fs::exists(manifest)) {
    inspect_checkpoint(open_model_source(path).directory, verify);
    return;
  }
  // A prepared corpus and a checkpoint both have a manifest; only the corpus counts documents.
  const std::string text = data::read_text_file(manifest, std::int64_t{64} << 20);
  if (text.find("train_documents") == std::string::npos) {
    inspect_checkpoint(path, verify);
    return;
  }
  const config::CorpusManifest corpus = data::read_corpus_manifest(path);
  std::cout << corpus.DebugString();
  if (verify) {
    data::verify_corpus(path);
    std::cout << "all digests agree and every token is inside the vocabulary\n";
  }
}

void inspect(const std::string& path, bool verify) {
  if (!fs::exists(path)) fail(ExitCode::kMissingInput, "{} does not exist", path);
  const std::string suffix = fs::path(path).extension().string();
  if (fs::is_directory(path)) {
    if (fs::exists(path + "/config.json")) {
      const ModelSource source = open_model_source(path);
      std::cout << config::complete_text(source.config);
      inspect_safetensors(path + "/model.safetensors");
    } else {
      inspect_directory(path, verify);
    }
  } else if (suffix == ".safetensors") {
    inspect_safetensors(path);
  } else if (suffix == ".h5" || suffix == ".npy") {
    inspect_tokens(path, verify);
  } else if (suffix == ".textproto") {
    const config::RunConfig config = config::load_run_config(path, {}, 0);
    std::cout << config::complete_text(config);
    const LanguageModel model(config.model(), config.data().context_length());
    std::cout << fmt::format("# {} parameters\n", model.parameters().num_elements());
  } else {
    fail(ExitCode::kUsage,
         "{}: expected a directory, or a .safetensors, .h5, .npy or .textproto file", path);
  }
}

}  // namespace

void add_inspect_command(CLI::App& app, Action& action) {
  auto path = std::make_shared<std::string>();
  auto verify = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand(
      "inspect", "Prints a checkpoint, corpus, token shard, configuration or safetensors file");
  command->add_option("path", *path, "File or directory")->required();
  command->add_flag("--verify", *verify, "Read everything and check digests and tokens");
  command->callback([path, verify, &action] {
    action = [path, verify](dist::Communicator& communicator) {
      if (communicator.rank() == 0) inspect(*path, *verify);
      return ExitCode::kOk;
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
