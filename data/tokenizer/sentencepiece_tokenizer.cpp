#include "data/tokenizer/sentencepiece_tokenizer.h"

#include <google/protobuf/unknown_field_set.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <exception>
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

// The library takes some 80 bytes a byte of text and slows down with its length, so long texts are encoded in parts.
constexpr std::size_t kPartBytes = std::size_t{1} << 16;

// A field of a serialized message of sentencepiece_model.proto, or what it is by default.
std::int64_t number_in(const google::protobuf::UnknownFieldSet& message, int field,
                       std::int64_t missing) {
  for (int i = 0; i < message.field_count(); ++i) {
    const auto& entry = message.field(i);
    if (entry.number() == field && entry.type() == google::protobuf::UnknownField::TYPE_VARINT) {
      missing = static_cast<std::int64_t>(entry.varint());
    }
  }
  return missing;
}
std::vector<std::string> texts_in(const google::protobuf::UnknownFieldSet& message, int field) {
  std::vector<std::string> texts;
  for (int i = 0; i < message.field_count(); ++i) {
    const auto& entry = message.field(i);
    if (entry.number() == field &&
        entry.type() == google::protobuf::UnknownField::TYPE_LENGTH_DELIMITED) {
      texts.push_back(entry.length_delimited());
    }
  }
  return texts;
}
// Whether a text is the tokens of its words: BPE, in which no piece goes on behind the space after a word, and a
// normaliser that does nothing but put a space before the text. True of Llama's models and of those trained here.
bool splits_at_spaces(const std::string& model) {
  google::protobuf::UnknownFieldSet proto;
  if (!proto.ParseFromString(model)) return false;
  google::protobuf::UnknownFieldSet trainer;
  google::protobuf::UnknownFieldSet normalizer;
  for (const std::string& text : texts_in(proto, 2)) trainer.ParseFromString(text);
  for (const std::string& text : texts_in(proto, 3)) normalizer.ParseFromString(text);
  constexpr std::int64_t kBpe = 2;
  if (number_in(trainer, 3, 1) != kBpe || number_in(trainer, 24, 0) != 0) return false;
  for (const std::string& rules : texts_in(normalizer, 2)) {
    if (!rules.empty()) return false;
  }
  const bool adds_prefix = number_in(normalizer, 3, 1) != 0;
  const bool removes_spaces = number_in(normalizer, 4, 1) != 0;
  const bool escapes_spaces = number_in(normalizer, 5, 1) != 0;
  if (!adds_prefix || removes_spaces || !escapes_spaces) return false;
  for (const std::string& entry : texts_in(proto, 1)) {
    google::protobuf::UnknownFieldSet piece;
    if (!piece.ParseFromString(entry)) return false;
    for (const std::string& text : texts_in(piece, 1)) {
      const std::size_t word = std::string_view(replace_space_symbol(text)).find_first_not_of(' ');
      if (replace_space_symbol(text).find(' ', word) != std::string::npos) return false;
    }
  }
  return true;
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::string& path, const TokenizerOptions& options) : path_(path) {
    const std::string model = read_text_file(path, kMaxModelBytes);
    if (const std::string problem = load(model); !problem.empty()) {
      fail(ExitCode::kCorruptInput, "{} is not a SentencePiece model: {}", path, problem);
    }
    if (processor_.bos_id() < 0 || processor_.eos_id() < 0) {
      fail(ExitCode::kCorruptInput, "{} has no BOS or no EOS piece (ids {} and {})", path,
           processor_.bos_id(), processor_.eos_id());
    }
    // The processor does not tell its normaliser's settings, but a word shows them.
    std::vector<std::string> pieces;
    check(processor_.Encode("a", &pieces));
    adds_leading_space_ = !pieces.empty() && pieces.front().starts_with(kSpaceSymbol);
    splits_at_spaces_ =
        splits_at_spaces(model) && processor_.PieceToId(kSpaceSymbol.data()) != processor_.unk_id();
    if (options.parse_special) special_ = control_pieces();
  }

  // Every part between control tokens is encoded as a text of its own, with a space before it: what Hugging
  // Face's fast Llama tokenizer does (its "legacy" behaviour), and so what ttt-lm-jax's arrays hold.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> ids;
    special_.split(
        text, [&](std::string_view part) { encode_part(part, ids); },
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
  // What is wrong with the model, or "". The library throws where its search tree refuses a piece, as one that begins with NUL.
  std::string load(const std::string& model) {
    try {
      const auto status = processor_.LoadFromSerializedProto(model);
      return status.ok() ? "" : status.ToString();
    } catch (const std::exception& error) {
      return error.what();
    }
  }

  // The space at a cut is left out, because the library puts one before each text.
  void encode_part(std::string_view text, std::vector<std::int32_t>& ids) const {
    std::vector<int> part_ids;
    while (!text.empty()) {
      const std::size_t cut = splits_at_spaces_ ? find_cut(text) : text.size();
      check(processor_.Encode({text.data(), cut}, &part_ids));
      ids.insert(ids.end(), part_ids.begin(), part_ids.end());
      text.remove_prefix(std::min(text.size(), cut + 1));
    }
  }

  // The first single space, or first of several, behind kPartBytes that something follows; the size if there is none.
  static std::size_t find_cut(std::string_view text) {
    for (std::size_t at = text.find(' ', kPartBytes); at < text.size() - 1;
         at = text.find(' ', at + 1)) {
      const std::string_view before = text.substr(0, at);
      if (!before.ends_with(' ') && !before.ends_with(kSpaceSymbol)) return at;
    }
    return text.size();
  }

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
  bool splits_at_spaces_ = false;
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
