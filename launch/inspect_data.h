#pragma once
// What `ttt inspect` shows of token files: windows as the model sees them, lengths, and differences.

#include <cstdint>
#include <string>

#include "configs/run.pb.h"
#include "data/tokens/token_file.h"

namespace ttt::launch {

struct DataInspection {
  std::string path;  // as for data::TokenArray::open
  data::Split split = data::Split::kTrain;
  std::int64_t window = -1;  // negative: none is shown
  std::int64_t context_length = 2048;
  std::int64_t masked_target = 1;
  bool by_documents = false;     // data.windows = DOCUMENTS
  bool shows_ids = false;        // numbers, not text
  std::string tokenizer;         // "": that of the directory; without one, numbers
  bool shows_lengths = false;    // of documents; only .h5 shards know them
  std::string other;             // "": nothing is compared
  std::int64_t num_samples = 0;  // of a configuration: so many of its first samples
};

/// True if `path` names token files (or a directory of them).
bool is_token_data(const std::string& path);

/// Prints the files and what else is asked for. Returns false if `other` has other tokens. 64 for a window that
/// is not there, 65 and 66 as data::TokenArray and open_tokenizer.
bool inspect_data(const DataInspection& inspection);

/// Prints which windows the first `count` samples of a run are, and the sources' shares of them.
void inspect_samples(const config::RunConfig& config, std::int64_t count);

}  // namespace ttt::launch
