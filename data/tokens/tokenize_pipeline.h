#pragma once
// Tokenizing on several threads with the output in the order of the input.
//
// One thread reads, `num_threads` tokenize batches of documents, and the caller's thread receives
// the batches in the order they were read. The batches under way are bounded, so memory is too.

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "data/tokenizer/tokenizer.h"

namespace ttt::data {

struct TokenizedDocument {
  std::span<const std::int32_t> ids;  // without BOS and EOS; valid during the call
  std::int64_t number = 0;            // from 0
  std::int64_t text_bytes = 0;
};

/// Receives the documents' texts, in order.
using PushText = std::function<void(std::string&&)>;

/// Calls `produce` on a thread of its own and `consume` on this one, once for every text pushed. An
/// error of `produce` is thrown here after the documents before it were consumed; one of `consume`
/// ends `produce` at its next push. All threads have ended when this returns or throws.
void tokenize_in_order(const Tokenizer& tokenizer, int num_threads,
                       const std::function<void(const PushText&)>& produce,
                       const std::function<void(const TokenizedDocument&)>& consume);

}  // namespace ttt::data
