#include "data/tokenizer/byte_level_tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "core/base/error.h"
#include "data/files.h"
#include "data/tokenizer/byte_pair_merges.h"
#include "data/tokenizer/regex_splitter.h"
#include "data/tokenizer/special_tokens.h"

namespace ttt::data {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t kMaxFileBytes = std::int64_t{64} << 20;
constexpr std::int64_t kMaxId = std::int64_t{1} << 24;
constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// In the file a byte is a printable character: itself if it is one in Latin-1, else U+0100 and up in order.
std::array<std::optional<char>, 512> make_byte_of_character() {
  std::array<std::optional<char>, 512> byte_of{};
  std::size_t next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    byte_of[printable ? byte : next++] = static_cast<char>(byte);
  }
  return byte_of;
}

// What a tokenizer.json says, checked.
struct Definition {
  std::unordered_map<std::string, std::int32_t> ids;  // by bytes
  std::vector<std::pair<std::string, std::string>> merges;
  bool words_first = false;
  bool composes = false;  // NFC
  std::vector<std::string> patterns;
  struct Added {
    SpecialTokens::Token token;
    bool is_special = false;
    bool is_normalized = false;
  };
  std::vector<Added> added;
};

class DefinitionReader {
 public:
  DefinitionReader(const std::string& path, const Json& file) : path_(path) {
    const Json& model = file.at("model");
    if (model.value("type", "") != "BPE") reject("model.type is not BPE");
    if (model.value("byte_fallback", false)) {
      reject(
          "model.byte_fallback is true: it is a SentencePiece vocabulary; use its tokenizer.model");
    }
    for (const char* key :
         {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
      if (model.contains(key) && !model[key].is_null() && model[key] != "") {
        reject(fmt::format("model.{} is set", key));
      }
    }
    definition_.words_first = model.value("ignore_merges", false);
    read_normalizer(file.value("normalizer", Json()));
    read_pre_tokenizer(file.value("pre_tokenizer", Json()));
    if (!is_byte_level_) reject("pre_tokenizer has no ByteLevel");
    read_vocabulary(model.at("vocab"));
    read_merges(model.at("merges"));
    for (const Json& token : file.value("added_tokens", Json::array())) read_added(token);
  }

  Definition take() { return std::move(definition_); }

 private:
  [[noreturn]] void reject(const std::string& what) const {
    fail(ExitCode::kCorruptInput,
         "{}: {}; a tokenizer.json with byte-level BPE is read (GPT-2, GPT-NeoX, Llama 3)", path_,
         what);
  }

  void read_normalizer(const Json& normalizer) {
    if (normalizer.is_null()) return;
    const std::string type = normalizer.value("type", "");
    if (type == "Sequence") {
      for (const Json& step : normalizer.at("normalizers")) read_normalizer(step);
    } else if (type == "NFC") {
      definition_.composes = true;
    } else {
      reject(fmt::format("the normalizer {} is not known", type));
    }
  }

  void read_pre_tokenizer(const Json& step) {
    const std::string type = step.is_null() ? "null" : step.value("type", "");
    if (type == "Sequence") {
      for (const Json& inner : step.at("pretokenizers")) read_pre_tokenizer(inner);
    } else if (type == "ByteLevel") {
      if (step.value("add_prefix_space", true)) reject("pre_tokenizer.add_prefix_space is true");
      if (step.value("use_regex", true)) definition_.patterns.emplace_back(kGpt2Pattern);
      is_byte_level_ = true;
    } else if (type == "Split") {
      const Json& pattern = step.at("pattern");
      if (step.value("behavior", "") != "Isolated" || step.value("invert", false) ||
          !pattern.contains("Regex") || is_byte_level_) {
        reject("a Split that is not an Isolated Regex before ByteLevel");
      }
      definition_.patterns.push_back(pattern["Regex"].get<std::string>());
    } else {
      reject(fmt::format("the pre_tokenizer {} is not known", type));
    }
  }

  std::string bytes_of(const std::string& token) const {
    static const auto byte_of_character = make_byte_of_character();
    std::string bytes;
    for (std::size_t at = 0; at < token.size();) {
      utf8proc_int32_t character = -1;
      const auto* const text = reinterpret_cast<const utf8proc_uint8_t*>(token.data()) + at;
      const auto length =
          utf8proc_iterate(text, static_cast<utf8proc_ssize_t>(token.size() - at), &character);
      if (length < 1 || character < 0 || character >= 512 ||
          !byte_of_character[static_cast<std::size_t>(character)]) {
        return "";
      }
      bytes += *byte_of_character[static_cast<std::size_t>(character)];
      at += static_cast<std::size_t>(length);
    }
    return bytes;
  }

  std::int32_t checked_id(const Json& id, const std::string& token) const {
    if (!id.is_number_integer() || id < 0 || id >= kMaxId) {
      reject(fmt::format("the id of \"{}\" is {}", token, id.dump()));
    }
    return id.get<std::int32_t>();
  }

  void read_vocabulary(const Json& vocabulary) {
    std::set<std::int32_t> seen;
    for (const auto& [token, value] : vocabulary.items()) {
      const std::int32_t id = checked_id(value, token);
      if (!seen.insert(id).second) reject(fmt::format("id {} twice", id));
      const std::string bytes = bytes_of(token);
      if (!bytes.empty())
        definition_.ids.emplace(bytes, id);  // else an added token, listed with them
    }
    for (int byte = 0; byte < 256; ++byte) {
      if (!definition_.ids.contains(std::string(1, static_cast<char>(byte)))) {
        reject(fmt::format("the vocabulary has no token for byte 0x{:02x}", byte));
      }
    }
  }

  void read_merges(const Json& merges) {
    for (const Json& merge : merges) {
      std::string left;
      std::string right;
      if (merge.is_array() && merge.size() == 2) {
        left = merge[0].get<std::string>();
        right = merge[1].get<std::string>();
      } else {  // older files: "left right"
        const auto text = merge.get<std::string>();
        const std::size_t space = text.find(' ');
        if (space == std::string::npos) reject(fmt::format("the merge \"{}\"", text));
        left = text.substr(0, space);
        right = text.substr(space + 1);
      }
      definition_.merges.emplace_back(bytes_of(left), bytes_of(right));
    }
  }

  void read_added(const Json& token) {
    Definition::Added added;
    added.token.content = token.at("content").get<std::string>();
    added.token.id = checked_id(token.at("id"), added.token.content);
    added.is_special = token.value("special", false);
    added.is_normalized = token.value("normalized", !added.is_special);
    if (added.token.content.empty()) reject("an added token without content");
    for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
      if (token.value(flag, false)) {
        reject(fmt::format("added token \"{}\" has {}", added.token.content, flag));
      }
    }
    definition_.added.push_back(std::move(added));
  }

  const std::string& path_;
  Definition definition_;
  bool is_byte_level_ = false;
};

Definition read_definition(const std::string& path) {
  const std::string text = read_text_file(path, kMaxFileBytes);
  try {
    return DefinitionReader(path, Json::parse(text)).take();
  } catch (const Json::exception& error) {
    fail(ExitCode::kCorruptInput, "{} is not a tokenizer.json: {}", path, error.what());
  }
}

SpecialTokens added_tokens(const Definition& definition, bool normalized, bool parse_special) {
  std::vector<SpecialTokens::Token> tokens;
  for (const Definition::Added& added : definition.added) {
    const bool wanted = parse_special || !added.is_special;
    if (wanted && added.is_normalized == normalized) tokens.push_back(added.token);
  }
  return SpecialTokens(std::move(tokens));
}

class ByteLevelTokenizer final : public Tokenizer {
 public:
  ByteLevelTokenizer(const std::string& path, const Definition& definition,
                     const TokenizerOptions& options)
      : path_(path),
        composes_(definition.composes),
        raw_tokens_(added_tokens(definition, false, options.parse_special)),
        normalized_tokens_(added_tokens(definition, true, options.parse_special)),
        merges_(definition.ids, definition.merges, definition.words_first, path) {
    for (const std::string& pattern : definition.patterns) splitters_.emplace_back(pattern, path);
    const auto place = [&](std::int32_t id) -> std::string& {
      const auto at = static_cast<std::size_t>(id);
      if (at >= pieces_.size()) pieces_.resize(at + 1);
      return pieces_[at];
    };
    for (const auto& [bytes, id] : definition.ids) place(id) = bytes;
    for (const auto& [token, is_special, is_normalized] : definition.added) {
      place(token.id) = is_special ? "" : token.content;
    }
    find_ends(definition);
  }

  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text) const override {
    Work work;
    const auto push = [&](std::int32_t id) { work.ids.push_back(id); };
    raw_tokens_.split(
        text,
        [&](std::string_view raw) {
          const std::string composed = compose(raw);
          normalized_tokens_.split(
              composed.empty() ? raw : composed,
              [&](std::string_view part) { encode_words(part, 0, work); }, push);
        },
        push);
    return std::move(work.ids);
  }

  [[nodiscard]] std::string id_to_bytes(std::int32_t id) const override {
    if (id < 0 || id >= vocab_size()) {
      fail(ExitCode::kCorruptInput, "token {} is outside the vocabulary [0, {}) of {}", id,
           vocab_size(), path_);
    }
    return pieces_[static_cast<std::size_t>(id)];
  }
  [[nodiscard]] bool adds_leading_space() const override { return false; }
  [[nodiscard]] std::int64_t vocab_size() const override {
    return static_cast<std::int64_t>(pieces_.size());
  }
  [[nodiscard]] std::int32_t bos_id() const override { return bos_id_; }
  [[nodiscard]] std::int32_t eos_id() const override { return eos_id_; }

 private:
  struct Work {
    RegexSplitter::Memory memory;
    BytePairMerges::Scratch scratch;
    std::vector<std::int32_t> ids;
  };

  // "" if `text` is composed as it is: every character below U+0300 is, and those lead with less than 0xcc.
  [[nodiscard]] std::string compose(std::string_view text) const {
    const auto may_change = [](char c) { return static_cast<unsigned char>(c) >= 0xcc; };
    if (!composes_ || std::ranges::none_of(text, may_change)) return "";
    utf8proc_uint8_t* out = nullptr;
    const auto length =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                     static_cast<utf8proc_ssize_t>(text.size()), &out,
                     static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(out, &std::free);
    if (length < 0) fail(ExitCode::kCorruptInput, "NFC: {}", utf8proc_errmsg(length));
    return {reinterpret_cast<const char*>(out), static_cast<std::size_t>(length)};
  }

  void encode_words(std::string_view text, std::size_t step, Work& work) const {
    if (step == splitters_.size()) return merges_.append(text, work.scratch, work.ids);
    splitters_[step].split(text, work.memory,
                           [&](std::string_view word) { encode_words(word, step + 1, work); });
  }

  void find_ends(const Definition& definition) {
    constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kNames = {
        {{"<|begin_of_text|>", "<|end_of_text|>"},
         {"<s>", "</s>"},
         {"<|endoftext|>", "<|endoftext|>"}}};
    const auto find = [&](std::string_view name) -> std::optional<std::int32_t> {
      for (const auto& added : definition.added) {
        if (added.token.content == name) return added.token.id;
      }
      return std::nullopt;
    };
    for (const auto& [bos, eos] : kNames) {
      if (!find(bos) || !find(eos)) continue;
      bos_id_ = *find(bos);
      eos_id_ = *find(eos);
      return;
    }
    fail(
        ExitCode::kCorruptInput,
        "{}: no added tokens <|begin_of_text|> and <|end_of_text|>, <s> and </s>, or <|endoftext|>",
        path_);
  }

  std::string path_;
  bool composes_;
  SpecialTokens raw_tokens_;
  SpecialTokens normalized_tokens_;
  BytePairMerges merges_;
  std::vector<RegexSplitter> splitters_;
  std::vector<std::string> pieces_;  // by id; "" for special tokens
  std::int32_t bos_id_ = -1;
  std::int32_t eos_id_ = -1;
};

}  // namespace

std::unique_ptr<Tokenizer> open_byte_level(const std::string& path,
                                           const TokenizerOptions& options) {
  return std::make_unique<ByteLevelTokenizer>(path, read_definition(path), options);
}

}  // namespace ttt::data
