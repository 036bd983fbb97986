#include "data/tokenizer/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "core/base/error.h"
#include "data/files.h"
#include "data/tokenizer/special_tokens.h"

namespace ttt::data {
namespace {

constexpr std::int64_t kMaxModelBytes = std::int64_t{64} << 20;
constexpr std::string_view kSpaceSymbol = "\xe2\x96\x81";  // U+2581, SentencePiece's space

std::string replace_space_symbol(std::string_view piece) {
  std::string bytes;
  while (!piece.empty()) {
    if (piece.starts_with(kSpaceSymbol)) {
      bytes += ' ';
      piece.remove_prefix(kSpaceSymbol.size());
    } else {
      bytes += piece.front();
      piece.remove_prefix(1);
    }
  }
  return bytes;
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::string& path, const TokenizerOptions& options) : path_(path) {
    const auto status = processor_.LoadFromSerializedProto(read_text_file(path, kMaxModelBytes));
    if (!status.ok()) {
      fail(ExitCode::kCorruptInput, "{} is not a SentencePiece model: {}", path, status.ToString());
    }
    if (processor_.bos_id() < 0 || processor_.eos_id() < 0) {
      fail(ExitCode::kCorruptInput, "{} has no BOS or no EOS piece (ids {} and {})", path,
           processor_.bos_id(), processor_.eos_id());
    }
    // The processor does not tell its normaliser's settings, but a word shows them.
    std::vector<std::string> pieces;
    check(processor_.Encode("a", &pieces));
    adds_leading_space_ = !pieces.empty() && pieces.front().starts_with(kSpaceSymbol);
    if (options.parse_special) special_ = control_pieces();
  }

  // Every part between control tokens is encoded as a text of its own, with a space before it: what Hugging
  // Face's fast Llama tokenizer does (its "legacy" behaviour), and so what ttt-lm-jax's arrays hold.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> ids;
    std::vector<int> part_ids;
    special_.split(
        text,
        [&](std::string_view part) {
          check(processor_.Encode({part.data(), part.size()}, &part_ids));
          ids.insert(ids.end(), part_ids.begin(), part_ids.end());
        },
        [&](std::int32_t id) { ids.push_back(id); });
    return ids;
  }

  [[nodiscard]] std::string id_to_bytes(std::int32_t id) const override {
    if (id < 0 || id >= vocab_size()) {
      fail(ExitCode::kCorruptInput, "token {} is outside the vocabulary [0, {}) of {}", id,
           vocab_size(), path_);
    }
    if (processor_.IsControl(id) || processor_.IsUnknown(id)) return "";
    const std::string& piece = processor_.IdToPiece(id);
    if (processor_.IsByte(id)) {  // "<0x41>"
      return std::string(1, static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16)));
    }
    return replace_space_symbol(piece);
  }

  [[nodiscard]] bool adds_leading_space() const override { return adds_leading_space_; }
  [[nodiscard]] std::int64_t vocab_size() const override { return processor_.GetPieceSize(); }
  [[nodiscard]] std::int32_t bos_id() const override { return processor_.bos_id(); }
  [[nodiscard]] std::int32_t eos_id() const override { return processor_.eos_id(); }

 private:
  void check(const sentencepiece::util::Status& status) const {
    if (!status.ok()) {
      fail(ExitCode::kCorruptInput, "tokenizing with {} failed: {}", path_, status.ToString());
    }
  }

  [[nodiscard]] SpecialTokens control_pieces() const {
    std::vector<SpecialTokens::Token> tokens;
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      if (processor_.IsControl(id) || processor_.IsUnknown(id)) {
        tokens.push_back({processor_.IdToPiece(id), id});
      }
    }
    return SpecialTokens(std::move(tokens));
  }

  std::string path_;
  SpecialTokens special_;  // none: all text is text
  sentencepiece::SentencePieceProcessor processor_;
  bool adds_leading_space_ = false;
};

// Lines of the texts, cut so that the trainer, which skips long sentences, skips none.
constexpr std::size_t kMaxSentenceBytes = std::size_t{1} << 20;

class LineIterator final : public sentencepiece::SentenceIterator {
 public:
  explicit LineIterator(const std::vector<std::string>& texts) : texts_(texts) { Next(); }

  [[nodiscard]] bool done() const override { return done_; }
  [[nodiscard]] const std::string& value() const override { return line_; }
  [[nodiscard]] sentencepiece::util::Status status() const override { return {}; }

  void Next() override {
    while (text_ < texts_.size()) {
      const std::string& text = texts_[text_];
      if (begin_ >= text.size()) {
        ++text_;
        begin_ = 0;
        continue;
      }
      std::size_t end = std::min(text.find('\n', begin_), text.size());
      std::size_t next = end + 1;
      if (end - begin_ > kMaxSentenceBytes) {
        end = begin_ + kMaxSentenceBytes;
        while ((static_cast<unsigned char>(text[end]) & 0xc0U) == 0x80) --end;
        next = end;
      }
      line_ = text.substr(begin_, end - begin_);
      begin_ = next;
      if (!line_.empty()) return;
    }
    done_ = true;
  }

 private:
  const std::vector<std::string>& texts_;
  std::size_t text_ = 0;
  std::size_t begin_ = 0;
  std::string line_;
  bool done_ = false;
};

}  // namespace

std::unique_ptr<Tokenizer> open_sentencepiece(const std::string& path,
                                              const TokenizerOptions& options) {
  return std::make_unique<SentencePieceTokenizer>(path, options);
}

void train_sentencepiece(const SentencePieceTraining& training, const std::string& model_path) {
  LineIterator lines(training.texts);
  if (lines.done()) fail(ExitCode::kUsage, "no text to train a tokenizer on");
  const std::unordered_map<std::string, std::string> arguments = {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(training.vocab_size)},
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "true"},
      {"remove_extra_whitespaces", "false"},
      {"unk_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"pad_id", "-1"},
      {"max_sentence_length", std::to_string(kMaxSentenceBytes)},
      // The model records this number, so it must not follow the machine.
      {"num_threads", "4"},
      {"minloglevel", "2"}};
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(arguments, &lines, &model);
  if (!status.ok()) {
    fail(ExitCode::kUsage, "a SentencePiece model of {} pieces cannot be trained on {} texts: {}",
         training.vocab_size, training.texts.size(), status.ToString());
  }
  write_file_atomically(model_path, model);
}

}  // namespace ttt::data
