#pragma once
// A preparation's last step: finished segments become the files of a corpus, and its manifest.

#include <cstdint>
#include <string>
#include <utility>

#include "configs/manifest.pb.h"
#include "data/tokens/prepare_stats.h"

namespace ttt::data {

class CorpusAssembly {
 public:
  /// `directory` is what becomes the corpus.
  explicit CorpusAssembly(std::string directory) : directory_(std::move(directory)) {}

  /// Lists a file of the directory.
  void add(const std::string& name);
  /// Training shards of segments get their names, train-00000.h5 and on, in the order of the parts; validation's, which are
  /// small and many, are merged. Counts documents and tokens. After a kill in here it can be done again.
  void take_segments(const std::string& segments, std::size_t num_parts, std::int64_t shard_tokens);

  [[nodiscard]] config::CorpusManifest& manifest() { return manifest_; }
  [[nodiscard]] const PrepareStats& stats() const { return stats_; }

 private:
  void list(const std::string& name, std::int64_t num_bytes, const std::string& xxh3_128);

  std::string directory_;
  config::CorpusManifest manifest_;
  PrepareStats stats_;
};

}  // namespace ttt::data
