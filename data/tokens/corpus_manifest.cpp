// Writing the manifest of a prepared corpus and reading it back.

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <filesystem>
#include <string_view>

#include "core/base/error.h"
#include "data/file_name.h"
#include "data/files.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokens/prepare.h"

namespace ttt::data {
namespace {

constexpr std::int64_t kMaxManifestBytes = std::int64_t{16} << 20;
constexpr ExitCode kCorrupt = ExitCode::kCorruptInput;

class FirstError final : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, int column, const std::string& message) override {
    if (text.empty()) text = fmt::format("{}:{}: {}", line + 1, column + 1, message);
  }
  std::string text;
};

std::string join(const std::string& directory, const std::string& name) {
  return (std::filesystem::path(directory) / name).string();
}

}  // namespace

void write_corpus_manifest(const std::string& directory, const config::CorpusManifest& manifest) {
  std::string text;
  TTT_CHECK(google::protobuf::TextFormat::PrintToString(manifest, &text), "manifest not printed");
  write_file_atomically(join(directory, "manifest.textproto"), text);
}

config::CorpusManifest read_corpus_manifest(const std::string& directory) {
  const std::string path = join(directory, "manifest.textproto");
  const std::string text = read_text_file(path, kMaxManifestBytes);
  config::CorpusManifest manifest;
  FirstError error;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  parser.SetRecursionLimit(64);
  if (!parser.ParseFromString(text, &manifest)) fail(kCorrupt, "{}:{}", path, error.text);
  if (manifest.format_version() != kShardFormatVersion) {
    fail(kCorrupt, "{}: format version {}, this program reads {}", path, manifest.format_version(),
         kShardFormatVersion);
  }
  if (manifest.vocab_size() < 1 || manifest.vocab_size() > kMaxVocabSize) {
    fail(kCorrupt, "{}: a vocabulary of {}", path, manifest.vocab_size());
  }
  if (!manifest.tokenizer().empty() && !is_plain_file_name(manifest.tokenizer())) {
    fail(kCorrupt, "{}: \"{}\" is not a file name in this directory", path, manifest.tokenizer());
  }
  for (const config::FileDigest& file : manifest.files()) {
    if (!is_plain_file_name(file.name())) {
      fail(kCorrupt, "{}: \"{}\" is not a file name in this directory", path, file.name());
    }
    const std::int64_t size = file_size_bytes(join(directory, file.name()));
    if (static_cast<std::uint64_t>(size) != file.num_bytes()) {
      fail(kCorrupt, "{} has {} bytes, its manifest tells of {}", join(directory, file.name()),
           size, file.num_bytes());
    }
  }
  return manifest;
}

std::vector<std::string> corpus_shards(const config::CorpusManifest& manifest,
                                       const std::string& directory, Split split) {
  std::vector<std::string> shards;
  for (const config::FileDigest& file : manifest.files()) {
    if (file.name().starts_with(name_of(split) + "-") && file.name().ends_with(".h5")) {
      shards.push_back(join(directory, file.name()));
    }
  }
  return shards;
}

std::string corpus_tokenizer_path(const config::CorpusManifest& manifest,
                                  const std::string& directory) {
  return manifest.tokenizer().empty() ? "bytes" : join(directory, manifest.tokenizer());
}

void verify_corpus(const std::string& directory) {
  const config::CorpusManifest manifest = read_corpus_manifest(directory);
  for (const config::FileDigest& file : manifest.files()) {
    const std::string path = join(directory, file.name());
    const std::string digest = xxh3_128_hex_of_file(path);
    if (digest != file.xxh3_128()) {
      fail(kCorrupt, "{} has the digest {}, its manifest tells of {}", path, digest,
           file.xxh3_128());
    }
  }
  const auto tokenizer = open_tokenizer(corpus_tokenizer_path(manifest, directory));
  if (tokenizer->vocab_size() != manifest.vocab_size()) {
    fail(kCorrupt, "{}: the tokenizer has a vocabulary of {}, the manifest tells of {}", directory,
         tokenizer->vocab_size(), manifest.vocab_size());
  }
  for (const Split split : {Split::kTrain, Split::kValidation}) {
    const std::int64_t expected =
        split == Split::kTrain ? manifest.train_documents() : manifest.validation_documents();
    std::int64_t documents = 0;
    for (const std::string& shard : corpus_shards(manifest, directory, split)) {
      documents += static_cast<std::int64_t>(read_document_offsets(shard).size()) - 1;
    }
    if (documents != expected) {
      fail(kCorrupt, "{}: the {} shards have {} documents, the manifest tells of {}", directory,
           name_of(split), documents, expected);
    }
    if (documents > 0) TokenArray::open({directory}, split).verify(manifest.vocab_size());
  }
}

}  // namespace ttt::data
