#include "data/tokenizer/special_tokens.h"

#include <algorithm>
#include <utility>

#include "core/base/error.h"

namespace ttt::data {

SpecialTokens::SpecialTokens(std::vector<Token> tokens) : is_empty_(tokens.empty()) {
  std::ranges::sort(
      tokens, [](const Token& a, const Token& b) { return a.content.size() > b.content.size(); });
  for (Token& token : tokens) {
    TTT_CHECK(!token.content.empty(), "a special token without text");
    const auto first = static_cast<unsigned char>(token.content.front());
    by_first_byte_[first].push_back(std::move(token));
  }
}

const SpecialTokens::Token* SpecialTokens::match(std::string_view text) const {
  for (const Token& token : by_first_byte_[static_cast<unsigned char>(text.front())]) {
    if (text.starts_with(token.content)) return &token;
  }
  return nullptr;
}

}  // namespace ttt::data
