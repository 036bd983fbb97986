#include "data/tokens/corpus_assembly.h"

#include <array>
#include <filesystem>
#include <system_error>
#include <vector>

#include "core/base/error.h"
#include "data/files.h"
#include "data/tokens/prepare_segments.h"

namespace ttt::data {

void CorpusAssembly::add(const std::string& name) {
  const std::string path = directory_ + "/" + name;
  list(name, file_size_bytes(path), xxh3_128_hex_of_file(path));
}

void CorpusAssembly::take_segments(const std::string& segments, std::size_t num_parts,
                                   std::int64_t shard_tokens) {
  std::array<std::int64_t, 2> documents{};  // by Split
  std::array<std::int64_t, 2> tokens{};
  std::vector<std::string> held_out_shards;
  std::int64_t num_train = 0;
  std::error_code error;
  for (std::size_t part = 0; part < num_parts; ++part) {
    const auto records = read_segments(segments, part);
    TTT_CHECK(!records.empty() && records.back().is_last, "part {} is not finished", part);
    for (std::size_t i = 0; i < records.size(); ++i) {
      stats_.add(records[i].stats);
      const std::string stem = segment_stem(segments, part, i);
      const auto& [train, held_out] = records[i].shards;
      documents[0] += train.documents;
      documents[1] += held_out.documents;
      tokens[0] += train.tokens;
      tokens[1] += held_out.tokens;
      if (train.documents > 0) {
        const std::string name = fmt::format("train-{:05}.h5", num_train++);
        const std::string from = segment_shard(stem, Split::kTrain);
        // A run that was killed here has moved it.
        if (std::filesystem::exists(from, error)) rename_durably(from, directory_ + "/" + name);
        list(name, train.num_bytes, train.xxh3_128);
      }
      if (held_out.documents > 0) {
        held_out_shards.push_back(segment_shard(stem, Split::kValidation));
      }
    }
  }
  for (const std::string& name :
       merge_shards(held_out_shards, directory_, Split::kValidation, shard_tokens)) {
    add(name);
  }
  manifest_.set_train_tokens(tokens[0]);
  manifest_.set_validation_tokens(tokens[1]);
  manifest_.set_train_documents(documents[0]);
  manifest_.set_validation_documents(documents[1]);
}

void CorpusAssembly::list(const std::string& name, std::int64_t num_bytes,
                          const std::string& xxh3_128) {
  config::FileDigest& file = *manifest_.add_files();
  file.set_name(name);
  file.set_num_bytes(static_cast<std::uint64_t>(num_bytes));
  file.set_xxh3_128(xxh3_128);
}

}  // namespace ttt::data
