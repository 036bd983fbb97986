#pragma once
// Text to token ids and back: a byte tokenizer that needs no file, SentencePiece models, and byte-level BPE
// as Hugging Face's tokenizer.json has it.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ttt::data {

/// Thread safe: every method is const and keeps no state.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// The ids of `text` (UTF-8), without BOS and EOS.
  [[nodiscard]] virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;
  /// The bytes the ids stand for; control ids stand for none. Undoes `encode` for UTF-8 text (a
  /// SentencePiece model cannot tell U+2581 from a space). Ids outside the vocabulary are 65.
  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids) const;

  /// The bytes of one id in the middle of a text: "" for control ids, one byte for byte pieces.
  /// Throws 65 outside [0, vocab_size()).
  [[nodiscard]] virtual std::string id_to_bytes(std::int32_t id) const = 0;
  /// True if `encode` puts a space before the text, which `decode` takes away again.
  [[nodiscard]] virtual bool adds_leading_space() const = 0;

  [[nodiscard]] virtual std::int64_t vocab_size() const = 0;
  [[nodiscard]] virtual std::int32_t bos_id() const = 0;
  [[nodiscard]] virtual std::int32_t eos_id() const = 0;
};

struct TokenizerOptions {
  /// Text that looks like a control token ("</s>", "<|endoftext|>") becomes that token, as in ttt-lm-jax's
  /// arrays; else it is text like any other.
  bool parse_special = false;
};

/// "" or "bytes": one id a byte (0 unknown, 1 BOS, 2 EOS, 3 + byte; vocabulary 259; no control token has a
/// text). Else the path of a tokenizer.json (byte_level_tokenizer.h) or of a SentencePiece model: 66 if it is
/// missing, 65 if it is none or has no BOS and EOS.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& path,
                                          const TokenizerOptions& options = {});

/// The name a tokenizer's file has beside tokens and weights: "tokenizer.json" or "tokenizer.model".
std::string tokenizer_file_name(std::string_view path);

/// True for the two names of the byte tokenizer.
bool is_byte_tokenizer(std::string_view path);

struct SentencePieceTraining {
  std::int64_t vocab_size = 0;     // pieces, with the 256 bytes and 3 control pieces among them
  std::vector<std::string> texts;  // UTF-8; cut into lines for training
};

/// Trains a BPE model and writes it to `model_path` atomically: byte fallback, identity normaliser,
/// a space before the text, no spaces removed; 0 unknown, 1 BOS, 2 EOS, no padding. The same texts
/// give the same bytes. A vocabulary the texts cannot fill is 64.
void train_sentencepiece(const SentencePieceTraining& training, const std::string& model_path);

/// Turns ids into text one at a time, holding back a UTF-8 sequence until it is whole. Bytes that
/// cannot become UTF-8 any more come out as U+FFFD.
class StreamingDecoder {
 public:
  /// `tokenizer` must outlive this. `at_start`: the first id begins a text, so the space that
  /// `encode` adds is dropped; false when ids continue a prompt.
  explicit StreamingDecoder(const Tokenizer& tokenizer, bool at_start = true);

  /// The text that became complete with `id`; may be empty.
  std::string push(std::int32_t id);
  /// What is left at the end, as U+FFFD; empty if nothing was held back.
  std::string finish();

 private:
  std::string take_complete();

  const Tokenizer& tokenizer_;
  bool drop_space_;
  std::string held_;
};

}  // namespace ttt::data
