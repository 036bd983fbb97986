#include "data/tokenizer/tokenizer.h"

#include "core/base/error.h"
#include "data/files.h"
#include "data/tokenizer/byte_level_tokenizer.h"
#include "data/tokenizer/sentencepiece_tokenizer.h"

namespace ttt::data {
namespace {

constexpr std::int32_t kFirstByteId = 3;  // after unknown, BOS and EOS, as in a byte-fallback model
constexpr std::string_view kReplacement = "\xef\xbf\xbd";

class ByteTokenizer final : public Tokenizer {
 public:
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> ids;
    ids.reserve(text.size());
    for (const char c : text) ids.push_back(kFirstByteId + static_cast<unsigned char>(c));
    return ids;
  }
  [[nodiscard]] std::string id_to_bytes(std::int32_t id) const override {
    if (id < 0 || id >= vocab_size()) {
      fail(ExitCode::kCorruptInput, "token {} is outside the byte vocabulary [0, {})", id,
           vocab_size());
    }
    return id < kFirstByteId ? "" : std::string(1, static_cast<char>(id - kFirstByteId));
  }
  [[nodiscard]] bool adds_leading_space() const override { return false; }
  [[nodiscard]] std::int64_t vocab_size() const override { return kFirstByteId + 256; }
  [[nodiscard]] std::int32_t bos_id() const override { return 1; }
  [[nodiscard]] std::int32_t eos_id() const override { return 2; }
};

// True if more bytes could make one UTF-8 sequence of `bytes`. The first continuation byte may be
// confined to the lower or the upper end of its range; the two fillings try both ends.
bool is_incomplete_sequence(const std::string& bytes) {
  for (std::size_t missing = 1; missing + bytes.size() <= 4; ++missing) {
    for (const char filling : {'\x80', '\xbf'}) {
      const std::string filled = bytes + std::string(missing, filling);
      if (find_invalid_utf8(filled) == filled.size()) return true;
    }
  }
  return false;
}

}  // namespace

bool is_byte_tokenizer(std::string_view path) { return path.empty() || path == "bytes"; }

std::string tokenizer_file_name(std::string_view path) {
  return path.ends_with(".json") ? "tokenizer.json" : "tokenizer.model";
}

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& path,
                                          const TokenizerOptions& options) {
  if (is_byte_tokenizer(path)) return std::make_unique<ByteTokenizer>();
  if (path.ends_with(".json")) return open_byte_level(path, options);
  return open_sentencepiece(path, options);
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  for (const std::int32_t id : ids) text += id_to_bytes(id);
  if (adds_leading_space() && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

StreamingDecoder::StreamingDecoder(const Tokenizer& tokenizer, bool at_start)
    : tokenizer_(tokenizer), drop_space_(at_start && tokenizer.adds_leading_space()) {}

std::string StreamingDecoder::push(std::int32_t id) {
  std::string bytes = tokenizer_.id_to_bytes(id);
  if (drop_space_ && !bytes.empty()) {
    if (bytes.starts_with(' ')) bytes.erase(0, 1);
    drop_space_ = false;
  }
  held_ += bytes;
  return take_complete();
}

std::string StreamingDecoder::take_complete() {
  std::string text;
  while (true) {
    const std::size_t valid = find_invalid_utf8(held_);
    text += held_.substr(0, valid);
    held_.erase(0, valid);
    if (held_.empty() || is_incomplete_sequence(held_)) return text;
    text += kReplacement;
    held_.erase(0, 1);
  }
}

std::string StreamingDecoder::finish() {
  std::string text;
  for (std::size_t i = 0; i < held_.size(); ++i) text += kReplacement;
  held_.clear();
  return text;
}

}  // namespace ttt::data
