#pragma once
// SentencePiece behind the Tokenizer interface.

#include <memory>
#include <string>

#include "data/tokenizer/tokenizer.h"

namespace ttt::data {

/// See open_tokenizer.
std::unique_ptr<Tokenizer> open_sentencepiece(const std::string& path,
                                              const TokenizerOptions& options);

}  // namespace ttt::data
