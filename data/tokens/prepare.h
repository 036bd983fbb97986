#pragma once
// Text corpora to token shards: what `ttt prepare` does.
//
// Every document becomes BOS, ids, EOS (one that is both stands at the beginning only); documents keep the
// order of the input. The output directory holds train-00000.h5 ..., validation-00000.h5 ..., the tokenizer's
// file (unless bytes), prepare.json and, written last, manifest.textproto.
//
// Work is done beside it, in OUTPUT.partial, and renamed in the end: OUTPUT is whole or absent. It keeps the digest of
// inputs and options, plan.xxh3, by which the same command finds that nothing is left to do. A part
// (prepare_plan.h) is cut in segments of at most shard_tokens; a finished segment is a shard of each split
// and a record, so that a run that was killed goes on behind the last. None of it depends on threads or ranks.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "configs/manifest.pb.h"
#include "data/corpus/document_filter.h"
#include "data/tokens/prepare_stats.h"
#include "data/tokens/token_file.h"
#include "data/tokens/tokenize_pipeline.h"

namespace ttt::data {

struct PrepareOptions {
  std::vector<std::string> inputs;             // files and directories, see corpus/reader.h
  std::vector<std::string> validation_inputs;  // if any, these are the validation split
  RecordFields fields;
  std::string output_directory;
  bool skip_rejected = false;       // what is no document is counted and passed over; else an error
  DocumentFilter filter;            // its seed is `seed`
  bool remove_duplicates = false;   // of equal texts the first is kept; reads everything once more
  std::string tokenizer = "bytes";  // as for open_tokenizer
  bool parse_special = false;
  // Greater than 0: a SentencePiece model of this size is trained on the training documents, and
  // `tokenizer` must be left at "bytes".
  std::int64_t train_vocab_size = 0;
  // At most so much text, from the first.
  std::int64_t tokenizer_training_bytes = std::int64_t{1} << 28;
  // Without validation_inputs: every n-th document of a part (n, 2n, ... counted from 1) if
  // validation_every is greater than 0, else each document with this probability, by a hash of (seed, text):
  // equal documents are in one split.
  double validation_fraction = 0.0005;
  std::int64_t validation_every = 0;
  std::uint64_t seed = 0;
  // A shard ends before the document that passes it. It is held in memory, 2 or 4 bytes a token.
  std::int64_t shard_tokens = std::int64_t{1} << 27;
  std::int64_t part_bytes = std::int64_t{1} << 28;  // files are put together up to so much
  int num_threads = 1;                              // tokenizing; the output does not depend on it
};

/// Of one rank, this run.
struct PrepareProgress {
  std::int64_t documents = 0;
  std::int64_t tokens = 0;
  std::int64_t text_bytes = 0;
  std::int64_t input_bytes = 0;  // read of the files, as they are
  std::int64_t total_input_bytes = 0;
};

using OnProgress = std::function<void(const PrepareProgress&)>;

/// The phases of a preparation. With several ranks each has one; between two phases all ranks wait.
class PrepareJob {
 public:
  /// Checks options and inputs, and that `output_directory` is absent, empty, or what this job makes.
  explicit PrepareJob(const PrepareOptions& options);
  ~PrepareJob();
  PrepareJob(const PrepareJob&) = delete;
  PrepareJob& operator=(const PrepareJob&) = delete;

  /// `output_directory` is there already: only `finish` is left.
  [[nodiscard]] bool is_done() const;
  /// One rank: takes OUTPUT.partial, made new or left by a run of the same plan; trains or copies the tokenizer.
  /// Leaves nothing behind unless a segment was finished.
  void begin();
  /// Every rank: digests of its parts, if duplicates are to be removed.
  void scan(int rank, int num_ranks);
  /// One rank.
  void compare_digests();
  /// Every rank: tokenizes its parts, those of number rank, rank + num_ranks, ... `on_progress` (may be empty)
  /// is called after every document, from the calling thread.
  void tokenize(int rank, int num_ranks, const OnProgress& on_progress);
  /// One rank: puts the segments together and names the directory, into which `add_files` (may be empty) has put what else
  /// belongs there. Where that is done it removes what a killed run left beside it.
  config::CorpusManifest finish(
      const std::function<void(const std::string& directory)>& add_files = {});
  /// What was counted; after `finish`.
  [[nodiscard]] const PrepareStats& stats() const;

 private:
  class Work;
  std::unique_ptr<Work> work_;
};

/// All phases on one rank.
/// Errors: 64 for options that contradict each other and for a corpus without a training document; 73 if
/// output_directory is something else, or another process prepares it; 78 if OUTPUT.partial has finished
/// segments of another plan; those of read_file_documents and open_tokenizer.
config::CorpusManifest prepare_corpus(const PrepareOptions& options,
                                      const OnProgress& on_progress = {});

/// True if a document belongs to the validation split; `number` is its place in its part, from 0.
bool is_validation_document(const PrepareOptions& options, std::int64_t number,
                            std::string_view text);

/// DIRECTORY/manifest.textproto.
void write_corpus_manifest(const std::string& directory, const config::CorpusManifest& manifest);

/// Parses and checks DIRECTORY/manifest.textproto. 66 if there is none, 65 if it is damaged, lists a
/// path outside the directory, or a file's size is not the listed one.
config::CorpusManifest read_corpus_manifest(const std::string& directory);

/// The shards of a split, in order.
std::vector<std::string> corpus_shards(const config::CorpusManifest& manifest,
                                       const std::string& directory, Split split);

/// The path for open_tokenizer: the file in DIRECTORY or "bytes".
std::string corpus_tokenizer_path(const config::CorpusManifest& manifest,
                                  const std::string& directory);

/// Reads all files: 65 for the first whose digest is not the manifest's, for a token outside the
/// vocabulary, or for counts that disagree.
void verify_corpus(const std::string& directory);

}  // namespace ttt::data
