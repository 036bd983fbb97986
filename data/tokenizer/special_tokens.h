#pragma once
// Tokens that are found in text as strings before anything else is done with it.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ttt::data {

class SpecialTokens {
 public:
  struct Token {
    std::string content;  // not empty
    std::int32_t id = 0;
  };

  SpecialTokens() = default;
  explicit SpecialTokens(std::vector<Token> tokens);

  /// Cuts `text` at the tokens: the leftmost first, of those that begin at one place the longest. Calls
  /// on_text(std::string_view) for what lies between, if it is not empty, and on_token(id), in order.
  template <typename OnText, typename OnToken>
  void split(std::string_view text, OnText on_text, OnToken on_token) const {
    std::size_t begin = 0;
    for (std::size_t at = 0; at < text.size() && !is_empty_;) {
      const Token* const token = match(text.substr(at));
      if (token == nullptr) {
        ++at;
        continue;
      }
      if (at > begin) on_text(text.substr(begin, at - begin));
      on_token(token->id);
      at += token->content.size();
      begin = at;
    }
    if (begin < text.size()) on_text(text.substr(begin));
  }

 private:
  [[nodiscard]] const Token* match(std::string_view text) const;

  std::array<std::vector<Token>, 256> by_first_byte_;  // longest first
  bool is_empty_ = true;
};

}  // namespace ttt::data
