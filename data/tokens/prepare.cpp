#include "data/tokens/prepare.h"

#include <google/protobuf/text_format.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "data/corpus/reader.h"
#include "data/files.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokens/tokenize_pipeline.h"

namespace ttt::data {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxModelBytes = std::int64_t{64} << 20;
constexpr const char* kTokenizerName = "tokenizer.model";

void check_options(const PrepareOptions& options) {
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) fail(ExitCode::kUsage, "prepare: {}", what);
  };
  require(!options.inputs.empty(), "no input files are named");
  require(!options.output_directory.empty(), "no output directory is named");
  require(
      options.validation_fraction >= 0 && options.validation_fraction < 1,
      fmt::format("validation_fraction is {}, it must lie in [0, 1)", options.validation_fraction));
  require(options.validation_every >= 0 && options.validation_every != 1,
          fmt::format("validation_every is {}, it must be 0 (off) or at least 2",
                      options.validation_every));
  require(options.validation_inputs.empty() || options.validation_every == 0,
          "validation_every and validation inputs exclude each other");
  require(options.shard_tokens >= 1,
          fmt::format("shard_tokens is {}, it must be positive", options.shard_tokens));
  require(options.num_threads >= 1,
          fmt::format("num_threads is {}, it must be positive", options.num_threads));
  require(options.train_vocab_size >= 0,
          fmt::format("train_vocab_size is {}, it must be 0 (off) or positive",
                      options.train_vocab_size));
  require(options.train_vocab_size == 0 || is_byte_tokenizer(options.tokenizer),
          fmt::format("a tokenizer is to be trained, and {} is to be used", options.tokenizer));
}

// OUTPUT.tmp-PID until `commit`; removed if that is never reached.
class OutputDirectory {
 public:
  explicit OutputDirectory(std::string path) : path_(std::move(path)) {
    while (path_.size() > 1 && path_.ends_with('/')) path_.pop_back();
    std::error_code error;
    if (fs::exists(path_, error) &&
        !(fs::is_directory(path_, error) && fs::is_empty(path_, error))) {
      fail(ExitCode::kLocked, "{} exists and is not an empty directory", path_);
    }
    const fs::path parent = fs::path(path_).parent_path();
    if (!parent.empty()) make_output_directory(parent);
    const std::string temporary = fmt::format("{}.tmp-{}", path_, ::getpid());
    if (!fs::create_directory(temporary, error)) {
      if (error) fail_with_errno("create", temporary, error.value());
      fail(ExitCode::kLocked, "{} is in the way", temporary);
    }
    temporary_ = temporary;
  }
  ~OutputDirectory() {
    if (temporary_.empty()) return;
    std::error_code error;
    fs::remove_all(temporary_, error);
    if (error) log::warning("event=not_removed path={} error=\"{}\"", temporary_, error.message());
  }
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;

  [[nodiscard]] std::string file(const std::string& name) const { return temporary_ + "/" + name; }
  void commit() {
    rename_durably(temporary_, path_);
    temporary_.clear();
  }

 private:
  std::string path_;
  std::string temporary_;
};

void train_tokenizer(const PrepareOptions& options, const std::string& model_path) {
  SentencePieceTraining training;
  training.vocab_size = options.train_vocab_size;
  std::int64_t number = 0;
  std::int64_t num_bytes = 0;
  for (const std::string& file : list_corpus_files(options.inputs)) {
    if (num_bytes >= options.tokenizer_training_bytes) break;
    read_documents({file}, options.fields, [&](Document&& document) {
      if (is_validation_document(options, number++)) return;
      if (num_bytes >= options.tokenizer_training_bytes) return;
      num_bytes += static_cast<std::int64_t>(document.text.size());
      training.texts.push_back(std::move(document.text));
    });
  }
  log::info("event=tokenizer_training documents={} text_bytes={} vocab_size={}",
            training.texts.size(), num_bytes, training.vocab_size);
  train_sentencepiece(training, model_path);
}

// Puts the tokenizer beside the shards and opens that copy, so that what the directory holds is what
// made the tokens.
std::unique_ptr<Tokenizer> place_tokenizer(const PrepareOptions& options,
                                           const OutputDirectory& output) {
  const std::string path = output.file(kTokenizerName);
  if (options.train_vocab_size > 0) {
    train_tokenizer(options, path);
  } else if (is_byte_tokenizer(options.tokenizer)) {
    return open_tokenizer(options.tokenizer);
  } else {
    write_file_atomically(path, read_text_file(options.tokenizer, kMaxModelBytes));
  }
  return open_tokenizer(path);
}

// The shards of one split: a new one is begun before the document that would pass the limit.
class SplitWriter {
 public:
  SplitWriter(Split split, const OutputDirectory& output, const Tokenizer& tokenizer,
              std::int64_t shard_tokens)
      : split_(split), output_(output), tokenizer_(tokenizer), shard_tokens_(shard_tokens) {}

  void append(std::span<const std::int32_t> ids) {
    document_.assign(1, tokenizer_.bos_id());
    document_.insert(document_.end(), ids.begin(), ids.end());
    document_.push_back(tokenizer_.eos_id());
    const auto count = static_cast<std::int64_t>(document_.size());
    if (shard_ && shard_->num_tokens() + count > shard_tokens_) finish_shard();
    if (!shard_) {
      names_.push_back(fmt::format("{}-{:05}.h5", name_of(split_), names_.size()));
      shard_ =
          std::make_unique<TokenShardWriter>(output_.file(names_.back()), tokenizer_.vocab_size(),
                                             tokenizer_.bos_id(), tokenizer_.eos_id());
    }
    shard_->append_document(document_);
    num_tokens_ += count;
    ++num_documents_;
  }
  void finish() {
    if (shard_) finish_shard();
  }

  [[nodiscard]] const std::vector<std::string>& names() const { return names_; }
  [[nodiscard]] std::int64_t num_tokens() const { return num_tokens_; }
  [[nodiscard]] std::int64_t num_documents() const { return num_documents_; }

 private:
  void finish_shard() {
    shard_->finish();
    shard_.reset();
  }

  Split split_;
  const OutputDirectory& output_;
  const Tokenizer& tokenizer_;
  std::int64_t shard_tokens_;
  std::vector<std::int32_t> document_;
  std::unique_ptr<TokenShardWriter> shard_;
  std::vector<std::string> names_;
  std::int64_t num_tokens_ = 0;
  std::int64_t num_documents_ = 0;
};

void add_file(config::CorpusManifest& manifest, const OutputDirectory& output,
              const std::string& name) {
  config::FileDigest& file = *manifest.add_files();
  file.set_name(name);
  file.set_num_bytes(static_cast<std::uint64_t>(file_size_bytes(output.file(name))));
  file.set_xxh3_128(xxh3_128_hex_of_file(output.file(name)));
}

config::CorpusManifest make_manifest(const OutputDirectory& output, const Tokenizer& tokenizer,
                                     bool has_model, const SplitWriter& train,
                                     const SplitWriter& validation) {
  config::CorpusManifest manifest;
  manifest.set_format_version(static_cast<std::uint32_t>(kShardFormatVersion));
  manifest.set_vocab_size(tokenizer.vocab_size());
  if (has_model) manifest.set_tokenizer(kTokenizerName);
  manifest.set_bos_id(tokenizer.bos_id());
  manifest.set_eos_id(tokenizer.eos_id());
  if (has_model) add_file(manifest, output, kTokenizerName);
  for (const std::string& name : train.names()) add_file(manifest, output, name);
  for (const std::string& name : validation.names()) add_file(manifest, output, name);
  manifest.set_train_tokens(train.num_tokens());
  manifest.set_validation_tokens(validation.num_tokens());
  manifest.set_train_documents(train.num_documents());
  manifest.set_validation_documents(validation.num_documents());
  return manifest;
}

void write_manifest(const config::CorpusManifest& manifest, const OutputDirectory& output) {
  std::string text;
  TTT_CHECK(google::protobuf::TextFormat::PrintToString(manifest, &text), "manifest not printed");
  write_file_atomically(output.file("manifest.textproto"), text);
}

}  // namespace

bool is_validation_document(const PrepareOptions& options, std::int64_t number) {
  if (!options.validation_inputs.empty()) return false;
  if (options.validation_every > 0) return (number + 1) % options.validation_every == 0;
  const CounterRng rng(options.seed, "validation split");
  return rng.uniform(static_cast<std::uint64_t>(number)) < options.validation_fraction;
}

config::CorpusManifest prepare_corpus(
    const PrepareOptions& options, const std::function<void(const PrepareProgress&)>& on_progress) {
  check_options(options);
  // Told before an hour of tokenizing, not after.
  list_corpus_files(options.inputs);
  list_corpus_files(options.validation_inputs);
  OutputDirectory output(options.output_directory);
  const auto tokenizer = place_tokenizer(options, output);
  SplitWriter train(Split::kTrain, output, *tokenizer, options.shard_tokens);
  SplitWriter validation(Split::kValidation, output, *tokenizer, options.shard_tokens);
  PrepareProgress progress;
  const auto tokenize = [&](const std::vector<std::string>& inputs, const auto& writer_of) {
    const auto produce = [&](const PushText& push) {
      read_documents(inputs, options.fields,
                     [&](Document&& document) { push(std::move(document.text)); });
    };
    tokenize_in_order(*tokenizer, options.num_threads, produce,
                      [&](const TokenizedDocument& document) {
                        writer_of(document.number).append(document.ids);
                        ++progress.documents;
                        progress.tokens += static_cast<std::int64_t>(document.ids.size()) + 2;
                        progress.text_bytes += document.text_bytes;
                        if (on_progress) on_progress(progress);
                      });
  };
  tokenize(options.inputs, [&](std::int64_t number) -> SplitWriter& {
    return is_validation_document(options, number) ? validation : train;
  });
  if (!options.validation_inputs.empty()) {
    tokenize(options.validation_inputs, [&](std::int64_t) -> SplitWriter& { return validation; });
  }
  train.finish();
  validation.finish();
  if (train.num_documents() == 0) {
    fail(ExitCode::kUsage, "prepare: none of the {} documents is in the training split",
         progress.documents);
  }
  if (validation.num_documents() == 0) {
    log::warning("event=no_validation_documents documents={} validation_fraction={}",
                 progress.documents, options.validation_fraction);
  }
  const bool has_model = options.train_vocab_size > 0 || !is_byte_tokenizer(options.tokenizer);
  auto manifest = make_manifest(output, *tokenizer, has_model, train, validation);
  write_manifest(manifest, output);
  output.commit();
  return manifest;
}

}  // namespace ttt::data
