#pragma once
// Token files: HDF5 shards written here; read as they are: .npy arrays (ttt-lm-jax), .bin of Megatron,
// llm.c and raw. docs/formats.md has the layouts.

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace ttt::data {

enum class Split { kTrain, kValidation };
/// "train" or "validation".
std::string name_of(Split split);

inline constexpr std::int64_t kShardFormatVersion = 1;
/// Larger vocabularies are refused everywhere.
inline constexpr std::int64_t kMaxVocabSize = std::int64_t{1} << 31;

/// What the header of a token file says. Zero num_documents and vocab_size, -1 ids: it does not say.
struct TokenFileInfo {
  std::string path;
  std::string format;  // for people: "HDF5 shard", "npy", "Megatron", "llm.c", "raw"
  std::int64_t num_tokens = 0;
  std::int64_t num_documents = 0;
  std::int64_t vocab_size = 0;
  std::int64_t bos_id = -1;
  std::int64_t eos_id = -1;
  int token_bytes = 2;  // 2, 4 or 8, little endian
  bool is_signed = false;
  std::int64_t data_offset = 0;  // bytes from the start of the file to token 0
};

/// Reads and checks a header, by suffix: .h5, .npy, .bin (Megatron or llm.c), .bin:u16 and .bin:u32
/// (tokens alone). 66 missing, 65 damaged or of another format, 64 for another suffix and for a .bin that
/// does not say what it is.
TokenFileInfo read_token_file_info(const std::string& path);

/// The documents' first tokens in a shard, and one past the last: num_documents + 1 numbers.
std::vector<std::uint64_t> read_document_offsets(const std::string& shard_path);

/// The tokens of several files as one array; memory-mapped, never loaded. Thread safe.
class TokenArray {
 public:
  /// `paths`: files as for read_token_file_info and directories, of which the files of `split` are taken:
  /// those made by `ttt prepare`, whose manifest must agree with them, and those of ttt-lm-jax, in which
  /// (or below which, once) lie train.npy and validation.npy. Sizes are checked here, digests by
  /// verify_corpus. 64 without paths, 66 missing, 65 damaged, or vocabularies that differ.
  static TokenArray open(const std::vector<std::string>& paths, Split split);

  TokenArray(const TokenArray&) = delete;
  TokenArray& operator=(const TokenArray&) = delete;
  TokenArray(TokenArray&&) noexcept;
  TokenArray& operator=(TokenArray&&) noexcept;
  ~TokenArray();

  [[nodiscard]] std::int64_t num_tokens() const;
  /// 0 if the files do not say.
  [[nodiscard]] std::int64_t vocab_size() const;
  [[nodiscard]] const std::vector<TokenFileInfo>& files() const;
  /// "2 files (a.h5, b.h5)", for messages.
  [[nodiscard]] std::string describe() const;

  /// From now on `read` fails with 65 for a token outside [0, vocab_size). Small arrays are read through at
  /// once: a wrong file is told before training begins.
  void require_vocabulary(std::int64_t vocab_size);

  /// Copies tokens [begin, begin + out.size()) to `out`.
  void read(std::int64_t begin, std::span<std::int64_t> out) const;

  /// Reads every token: 65 with file and index for the first outside [0, vocab_size). Megatron's indices too.
  void verify(std::int64_t vocab_size) const;

 private:
  class Mapping;
  TokenArray();
  void read_file(std::size_t file, std::int64_t begin, std::int64_t vocab_size,
                 std::span<std::int64_t> out) const;

  std::int64_t required_vocabulary_ = 0;  // 0: any
  std::vector<TokenFileInfo> files_;
  std::vector<std::unique_ptr<Mapping>> mappings_;  // [files]
  std::vector<std::int64_t> begins_;                // [files + 1]: index of each file's first token
};

/// Writes one shard. The file appears under its name in `finish`, whole and durable; destruction
/// before leaves nothing. Holds the tokens in memory (2 or 4 bytes each) until then, because a
/// contiguous HDF5 dataset is created with its size.
class TokenShardWriter {
 public:
  TokenShardWriter(std::string path, std::int64_t vocab_size, std::int64_t bos_id,
                   std::int64_t eos_id);
  ~TokenShardWriter();
  TokenShardWriter(const TokenShardWriter&) = delete;
  TokenShardWriter& operator=(const TokenShardWriter&) = delete;

  /// Appends one document as it is (BOS and EOS are the caller's). 65 for an id outside the
  /// vocabulary.
  void append_document(std::span<const std::int32_t> ids);
  /// One document, given in pieces.
  void append_document(std::initializer_list<std::span<const std::int32_t>> pieces);
  [[nodiscard]] std::int64_t num_tokens() const;
  [[nodiscard]] std::int64_t num_documents() const;
  void finish();

 private:
  void append_token(std::int32_t id);

  std::string path_;
  std::int64_t vocab_size_;
  std::int64_t bos_id_;
  std::int64_t eos_id_;
  std::int64_t token_bytes_;
  std::int64_t num_tokens_ = 0;
  std::vector<std::vector<std::byte>> blocks_;  // the tokens as stored, in blocks of equal capacity
  std::vector<std::uint64_t> document_offsets_;  // [num_documents + 1]
};

}  // namespace ttt::data
