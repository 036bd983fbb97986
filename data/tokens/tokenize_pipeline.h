#pragma once
// Tokenizing on several threads with the output in the order of the input.
//
// One thread reads, `num_threads` judge and tokenize batches of documents, and the caller's thread receives
// the batches in the order they were read. The batches under way are bounded, so memory is too.

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "data/corpus/reader.h"
#include "data/tokenizer/tokenizer.h"

namespace ttt::data {

/// What stands at one place of a corpus: a document, or something rejected.
struct CorpusItem {
  Document document;
  std::string rejected;  // why it is no document, for people
  std::string left_out;  // why it is not tokenized, for counting; "" if it is
  bool is_validation = false;
  std::int64_t number = 0;           // among the items, from 0
  std::int64_t document_number = 0;  // among the documents
  std::int64_t text_bytes = 0;
};

using PushItem = std::function<void(CorpusItem&&)>;

struct TokenizeSteps {
  std::function<void(const PushItem&)> produce;  // on a thread of its own
  std::function<void(CorpusItem&)> judge;        // on several: sets left_out and is_validation
  /// On the caller's thread, for every item in order; `ids` without BOS and EOS, valid during the call. The
  /// document's text is not there any more.
  std::function<void(const CorpusItem&, std::span<const std::int32_t> ids)> consume;
};

/// An error of `produce` is thrown here after the items before it were consumed; one of `consume` ends
/// `produce` at its next push. All threads have ended when this returns or throws.
void tokenize_in_order(const Tokenizer& tokenizer, int num_threads, const TokenizeSteps& steps);

}  // namespace ttt::data
