#pragma once
// Text corpora to token shards: what `ttt prepare` does.
//
// Every document becomes BOS, ids, EOS; documents keep the order of the input. The output directory
// holds train-00000.h5 ..., validation-00000.h5 ..., tokenizer.model (unless bytes) and, written
// last, manifest.textproto. It is built beside its place and renamed, so it is whole or absent.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "configs/manifest.pb.h"
#include "data/corpus/json_record.h"
#include "data/tokens/token_file.h"

namespace ttt::data {

struct PrepareOptions {
  std::vector<std::string> inputs;             // files and directories, see corpus/reader.h
  std::vector<std::string> validation_inputs;  // if any, these are the validation split
  RecordFields fields;
  std::string output_directory;
  std::string tokenizer = "bytes";  // "bytes" or a SentencePiece model
  // Greater than 0: a SentencePiece model of this size is trained on the training documents, and
  // `tokenizer` must be left at "bytes".
  std::int64_t train_vocab_size = 0;
  std::int64_t tokenizer_training_bytes = std::int64_t{1}
                                          << 28;  // at most so much text, from the first
  // Without validation_inputs: every n-th document (n, 2n, ... counted from 1) if validation_every is
  // greater than 0, else each document with this probability, by a hash of (seed, its number).
  double validation_fraction = 0.0005;
  std::int64_t validation_every = 0;
  std::uint64_t seed = 0;
  std::int64_t shard_tokens = std::int64_t{1}
                              << 28;  // a shard ends before the document that passes it
  int num_threads = 1;                // tokenizing; the output does not depend on it
};

struct PrepareProgress {
  std::int64_t documents = 0;
  std::int64_t tokens = 0;
  std::int64_t text_bytes = 0;
};

/// `on_progress` (may be empty) is called after every document, from the calling thread.
/// Errors: 64 for options that contradict each other and for a corpus without a training document;
/// 73 if output_directory exists and is not empty; those of read_documents and open_tokenizer.
config::CorpusManifest prepare_corpus(
    const PrepareOptions& options,
    const std::function<void(const PrepareProgress&)>& on_progress = {});

/// True if document `number` (from 0, over all of `inputs`) belongs to the validation split.
bool is_validation_document(const PrepareOptions& options, std::int64_t number);

/// Parses and checks DIRECTORY/manifest.textproto. 66 if there is none, 65 if it is damaged, lists a
/// path outside the directory, or a file's size is not the listed one.
config::CorpusManifest read_corpus_manifest(const std::string& directory);

/// The shards of a split, in order.
std::vector<std::string> corpus_shards(const config::CorpusManifest& manifest,
                                       const std::string& directory, Split split);

/// The path for open_tokenizer: DIRECTORY/tokenizer.model or "bytes".
std::string corpus_tokenizer_path(const config::CorpusManifest& manifest,
                                  const std::string& directory);

/// Reads all files: 65 for the first whose digest is not the manifest's, for a token outside the
/// vocabulary, or for counts that disagree.
void verify_corpus(const std::string& directory);

}  // namespace ttt::data
