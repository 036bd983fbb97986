#include "data/checkpoint/manifest.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <set>

#include "data/file_name.h"
#include "data/files.h"

namespace ttt::data {
namespace {

constexpr std::int64_t kMaxManifestBytes = std::int64_t{64} << 20;
constexpr std::int64_t kMaxWorldSize = 1'000'000;
constexpr std::string_view kDigestPrefix = "# xxh3_128 ";
constexpr int kMaxDepth = 64;

template <typename... Args>
[[noreturn]] void damaged(const std::string& path, fmt::format_string<Args...> format,
                          Args&&... args) {
  fail(ExitCode::kCorruptInput, "{}: {}", path, fmt::format(format, std::forward<Args>(args)...));
}

class FirstError final : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, google::protobuf::io::ColumnNumber column,
                const std::string& message) override {
    if (text.empty()) text = fmt::format("{}:{}: {}", line + 1, column + 1, message);
  }
  std::string text;
};

std::string digest_of(std::string_view text) {
  return xxh3_128_hex(std::as_bytes(std::span(text.data(), text.size())));
}

// The text without the digest line.
std::string verified_text(const std::string& path) {
  std::string text = read_text_file(path, kMaxManifestBytes);
  const std::size_t line = text.rfind(kDigestPrefix);
  if (line == std::string::npos || (line > 0 && text[line - 1] != '\n')) {
    damaged(path, "the digest line at the end is missing");
  }
  const std::string recorded = text.substr(line);
  text.resize(line);
  if (recorded != fmt::format("{}{}\n", kDigestPrefix, digest_of(text))) {
    damaged(path, "damaged or edited: the text does not match the digest at its end");
  }
  return text;
}

void check_contents(const std::string& path, const config::CheckpointManifest& manifest) {
  if (manifest.world_size() < 1 || manifest.world_size() > kMaxWorldSize) {
    damaged(path, "world_size {}", manifest.world_size());
  }
  if (manifest.dtype() != "F32" && manifest.dtype() != "F64") {
    damaged(path, "dtype '{}' is neither F32 nor F64", manifest.dtype());
  }
  std::set<std::string> names;
  for (const config::FileDigest& file : manifest.files()) {
    const std::string& name = file.name();
    if (!is_plain_file_name(name)) {
      damaged(path, "'{}' is not the name of a file in the directory", name);
    }
    if (!names.insert(name).second) damaged(path, "'{}' is listed twice", name);
  }
  for (int rank = 0; rank < manifest.world_size(); ++rank) {
    if (!names.contains(shard_name(rank))) damaged(path, "{} is not listed", shard_name(rank));
  }
  if (!manifest.tokenizer().empty() && !names.contains(manifest.tokenizer())) {
    damaged(path, "the tokenizer '{}' is not listed", manifest.tokenizer());
  }
  std::set<std::string> tensors;
  for (const NamedShape& tensor : tensors_of(manifest)) {
    if (!tensors.insert(tensor.name).second) damaged(path, "'{}' is listed twice", tensor.name);
  }
}

}  // namespace

void write_manifest(const std::string& directory, config::CheckpointManifest manifest) {
  manifest.set_format_version(kCheckpointFormatVersion);
  std::string text;
  TTT_CHECK(google::protobuf::TextFormat::PrintToString(manifest, &text), "manifest not printed");
  text += fmt::format("{}{}\n", kDigestPrefix, digest_of(text));
  const std::string path = std::filesystem::path(directory) / kManifestName;
  write_file_atomically(path, text);
  expect_content(path, text);
}

std::vector<NamedShape> tensors_of(const config::CheckpointManifest& manifest) {
  std::vector<NamedShape> result;
  std::int64_t end = 0;
  for (const config::TensorEntry& entry : manifest.tensors()) {
    const std::int64_t begin = entry.has_begin() ? entry.begin() : end;
    if (begin < end) {
      fail(ExitCode::kCorruptInput,
           "the manifest has '{}' at element {}, before the end of the one before it, {}",
           entry.name(), begin, end);
    }
    std::int64_t count = 1;
    bool is_valid = entry.shape_size() <= Shape::kMaxRank;
    for (const std::int64_t extent : entry.shape()) {
      is_valid = is_valid && extent >= 0 && !__builtin_mul_overflow(count, extent, &count);
    }
    // The end, times the world size, must fit too.
    if (!is_valid || __builtin_add_overflow(begin, count, &end) ||
        end > std::numeric_limits<std::int64_t>::max() / kMaxWorldSize) {
      fail(ExitCode::kCorruptInput, "the manifest's shape of '{}' is impossible", entry.name());
    }
    result.push_back({entry.name(),
                      Shape(std::span<const std::int64_t>(
                          entry.shape().data(), static_cast<std::size_t>(entry.shape_size()))),
                      begin});
  }
  return result;
}

std::vector<std::vector<FlatRange>> ranges_of_shards(const config::CheckpointManifest& manifest) {
  const std::int64_t n = flat_size(tensors_of(manifest));
  const auto world_size = static_cast<int>(manifest.world_size());
  std::vector<std::vector<FlatRange>> result(static_cast<std::size_t>(world_size));
  std::vector<FlatRange> all;
  for (int rank = 0; rank < world_size; ++rank) {
    auto& ranges = result[static_cast<std::size_t>(rank)];
    if (manifest.format_version() == 1) {
      ranges.push_back(even_range(n, rank, world_size));
      continue;
    }
    const auto file =
        std::ranges::find(manifest.files(), shard_name(rank), &config::FileDigest::name);
    for (int i = 0; i + 1 < file->range_size(); i += 2) {
      ranges.push_back({file->range(i), file->range(i + 1)});
    }
    all.insert(all.end(), ranges.begin(), ranges.end());
  }
  if (manifest.format_version() == 1) return result;
  std::ranges::sort(all, {}, &FlatRange::begin);
  std::int64_t end = 0;
  for (const FlatRange& range : all) {
    if (range.begin != end || range.end <= range.begin) {
      fail(ExitCode::kCorruptInput, "the manifest's shards have elements [{}, {}) after element {}",
           range.begin, range.end, end);
    }
    end = range.end;
  }
  if (end != n) {
    fail(ExitCode::kCorruptInput, "the manifest's shards end at element {} of {}", end, n);
  }
  return result;
}

config::CheckpointManifest read_manifest(const std::string& directory) {
  const std::string path = std::filesystem::path(directory) / kManifestName;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    fail(ExitCode::kMissingInput, "{} is not a checkpoint: it has no {}", directory, kManifestName);
  }
  const std::string text = verified_text(path);

  google::protobuf::TextFormat::Parser parser;
  parser.SetRecursionLimit(kMaxDepth);
  FirstError error;
  parser.RecordErrorsTo(&error);
  config::CheckpointManifest manifest;
  const bool parsed = parser.ParseFromString(text, &manifest);
  // A newer version may have fields this one does not know, so the version counts first.
  if (!parsed) {
    google::protobuf::TextFormat::Parser lenient;
    FirstError later_errors;
    lenient.RecordErrorsTo(&later_errors);
    lenient.SetRecursionLimit(kMaxDepth);
    lenient.AllowUnknownField(true);
    lenient.ParseFromString(text, &manifest);
  }
  if (manifest.format_version() > kCheckpointFormatVersion) {
    damaged(path, "format version {}; this program reads up to {}: use a newer one",
            manifest.format_version(), kCheckpointFormatVersion);
  }
  if (!parsed) damaged(path, "{}", error.text);
  if (manifest.format_version() == 0) damaged(path, "there is no format version");
  check_contents(path, manifest);
  return manifest;
}

}  // namespace ttt::data
