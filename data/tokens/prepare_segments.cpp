#include "data/tokens/prepare_segments.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "core/base/error.h"
#include "data/files.h"

namespace ttt::data {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t kMaxRecordBytes = std::int64_t{64} << 20;
constexpr std::array<Split, 2> kSplits = {Split::kTrain, Split::kValidation};

std::size_t index_of(Split split) { return split == Split::kTrain ? 0 : 1; }

std::string record_path(const std::string& stem) { return stem + ".json"; }

SegmentRecord read_record(const std::string& path) {
  const std::string text = read_text_file(path, kMaxRecordBytes);
  SegmentRecord record;
  try {
    const Json json = Json::parse(text);
    record.next_item = json.at("next_item");
    record.is_last = json.at("is_last");
    for (const Split split : kSplits) {
      const Json& shard = json.at(name_of(split));
      record.shards[index_of(split)] = {shard.at("documents"), shard.at("tokens"),
                                        shard.at("num_bytes"), shard.at("xxh3_128")};
    }
    record.stats = PrepareStats::from_json(json.at("stats"));
  } catch (const Json::exception& error) {
    fail(ExitCode::kCorruptInput, "{} is damaged: {}; remove it to do its work again", path,
         error.what());
  }
  return record;
}

void write_record(const SegmentRecord& record, const std::string& path) {
  Json json = {{"next_item", record.next_item},
               {"is_last", record.is_last},
               {"stats", record.stats.to_json()}};
  for (const Split split : kSplits) {
    const auto& shard = record.shards[index_of(split)];
    json[name_of(split)] = {{"documents", shard.documents},
                            {"tokens", shard.tokens},
                            {"num_bytes", shard.num_bytes},
                            {"xxh3_128", shard.xxh3_128}};
  }
  // Examples quote files, whose names need not be UTF-8.
  write_file_atomically(path, json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace

std::string segment_stem(const std::string& directory, std::size_t part, std::size_t segment) {
  return fmt::format("{}/part-{:05}-{:05}", directory, part, segment);
}

std::string segment_shard(const std::string& stem, Split split) {
  return stem + "." + name_of(split) + ".h5";
}

std::vector<SegmentRecord> read_segments(const std::string& directory, std::size_t part) {
  std::vector<SegmentRecord> records;
  std::error_code error;
  while (true) {
    const std::string path = record_path(segment_stem(directory, part, records.size()));
    if (!std::filesystem::exists(path, error)) return records;
    records.push_back(read_record(path));
  }
}

SegmentWriter::SegmentWriter(std::string directory, std::size_t part,
                             const std::vector<SegmentRecord>& finished, const Tokenizer& tokenizer,
                             std::int64_t shard_tokens)
    : directory_(std::move(directory)),
      part_(part),
      segment_(finished.size()),
      next_item_(finished.empty() ? 0 : finished.back().next_item),
      tokenizer_(tokenizer),
      shard_tokens_(shard_tokens) {}

std::int64_t SegmentWriter::append(const CorpusItem& item, std::span<const std::int32_t> ids) {
  TTT_CHECK(item.number == next_item_, "item {}, {} was to come", item.number, next_item_);
  if (!item.rejected.empty() || !item.left_out.empty()) {
    if (item.rejected.empty()) ++stats_.left_out[item.left_out];
    if (!item.rejected.empty()) stats_.add_rejected(item.left_out, item.rejected);
    ++next_item_;
    return 0;
  }
  const std::int32_t bos = tokenizer_.bos_id();
  const std::int32_t eos = tokenizer_.eos_id();
  const std::size_t num_ends = eos != bos ? 1 : 0;
  const auto count = static_cast<std::int64_t>(1 + ids.size() + num_ends);
  const std::size_t split = item.is_validation ? 1 : 0;
  auto& writer = writers_[split];
  if (writer && writer->num_tokens() + count > shard_tokens_) finish_segment(false);
  if (!writer) {
    const std::string stem = segment_stem(directory_, part_, segment_);
    writer = std::make_unique<TokenShardWriter>(segment_shard(stem, kSplits[split]),
                                                tokenizer_.vocab_size(), tokenizer_.bos_id(),
                                                tokenizer_.eos_id());
  }
  writer->append_document({{&bos, 1}, ids, {&eos, num_ends}});
  stats_.add_document(item.document.subset, item.text_bytes, count, item.is_validation);
  ++next_item_;
  return count;
}

void SegmentWriter::finish_segment(bool is_last) {
  const std::string stem = segment_stem(directory_, part_, segment_);
  SegmentRecord record;
  record.next_item = next_item_;
  record.is_last = is_last;
  for (const Split split : kSplits) {
    auto& writer = writers_[index_of(split)];
    if (!writer) continue;
    const std::string path = segment_shard(stem, split);
    writer->finish();
    record.shards[index_of(split)] = {writer->num_documents(), writer->num_tokens(),
                                      file_size_bytes(path), xxh3_128_hex_of_file(path)};
    writer.reset();
  }
  record.stats = std::exchange(stats_, {});
  write_record(record, record_path(stem));
  ++segment_;
}

void SegmentWriter::finish() { finish_segment(true); }

std::vector<std::string> merge_shards(const std::vector<std::string>& shards,
                                      const std::string& directory, Split split,
                                      std::int64_t shard_tokens) {
  std::vector<std::string> names;
  std::unique_ptr<TokenShardWriter> writer;
  for (const std::string& shard : shards) {
    const TokenFileInfo info = read_token_file_info(shard);
    const TokenArray tokens = TokenArray::open({shard}, split);
    const auto offsets = read_document_offsets(shard);
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
      std::vector<std::int64_t> wide(offsets[i + 1] - offsets[i]);
      tokens.read(static_cast<std::int64_t>(offsets[i]), wide);
      const std::vector<std::int32_t> document(wide.begin(), wide.end());
      const auto count = static_cast<std::int64_t>(document.size());
      if (writer && writer->num_tokens() + count > shard_tokens) {
        writer->finish();
        writer.reset();
      }
      if (!writer) {
        names.push_back(fmt::format("{}-{:05}.h5", name_of(split), names.size()));
        writer = std::make_unique<TokenShardWriter>(directory + "/" + names.back(), info.vocab_size,
                                                    info.bos_id, info.eos_id);
      }
      writer->append_document(document);
    }
  }
  if (writer) writer->finish();
  return names;
}

}  // namespace ttt::data
