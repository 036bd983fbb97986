#pragma once
// A part's finished work: segments of consecutive documents, each a shard of either split and a record.

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/tokenizer/tokenizer.h"
#include "data/tokens/prepare_stats.h"
#include "data/tokens/token_file.h"
#include "data/tokens/tokenize_pipeline.h"

namespace ttt::data {

struct SegmentRecord {
  std::int64_t next_item = 0;  // the part's first item behind the segment
  bool is_last = false;
  struct Shard {
    std::int64_t documents = 0, tokens = 0;  // zero: there is no such shard
    std::int64_t num_bytes = 0;
    std::string xxh3_128;
  };
  std::array<Shard, 2> shards;  // by Split
  PrepareStats stats;
};

/// DIRECTORY/part-PPPPP-SSSSS.
std::string segment_stem(const std::string& directory, std::size_t part, std::size_t segment);
/// The shard of a segment: STEM.train.h5 or STEM.validation.h5.
std::string segment_shard(const std::string& stem, Split split);

/// The finished segments of a part, in order: those whose record is there. 65 for a damaged record.
std::vector<SegmentRecord> read_segments(const std::string& directory, std::size_t part);

/// Takes the items of a part in order, from the first that no finished segment has.
class SegmentWriter {
 public:
  SegmentWriter(std::string directory, std::size_t part, const std::vector<SegmentRecord>& finished,
                const Tokenizer& tokenizer, std::int64_t shard_tokens);

  /// The first item that is wanted; earlier ones are passed over.
  [[nodiscard]] std::int64_t next_item() const { return next_item_; }
  /// Returns the tokens written, 0 for an item that is left out.
  std::int64_t append(const CorpusItem& item, std::span<const std::int32_t> ids);
  /// Ends the part.
  void finish();

 private:
  void finish_segment(bool is_last);

  std::string directory_;
  std::size_t part_;
  std::size_t segment_;
  std::int64_t next_item_;
  const Tokenizer& tokenizer_;
  std::int64_t shard_tokens_;
  std::array<std::unique_ptr<TokenShardWriter>, 2> writers_;  // by Split; null: nothing yet
  PrepareStats stats_;
};

/// Writes the documents of `shards`, in order, as SPLIT-00000.h5 ... in `directory` (the validation shards of
/// segments are small and many). Returns the names.
std::vector<std::string> merge_shards(const std::vector<std::string>& shards,
                                      const std::string& directory, Split split,
                                      std::int64_t shard_tokens);

}  // namespace ttt::data
