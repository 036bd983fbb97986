#pragma once
// tokenizer.json of Hugging Face with byte-level BPE (GPT-2, GPT-NeoX, Llama 3), behind the Tokenizer interface.
//
// text -> (added tokens cut out) -> NFC if the file says so -> (added tokens that ask for it) -> words by the
//   file's regular expressions -> the bytes of each word merged by rank.
// Source: the file format of huggingface/tokenizers; Radford et al. 2019, section 2.2 (byte-level BPE).

#include <memory>
#include <string>

#include "data/tokenizer/tokenizer.h"

namespace ttt::data {

/// 66 missing; 65 damaged, or of a kind that is not read, naming the part. BOS and EOS are, by name,
/// <|begin_of_text|> and <|end_of_text|>, <s> and </s>, or <|endoftext|> for both.
std::unique_ptr<Tokenizer> open_byte_level(const std::string& path,
                                           const TokenizerOptions& options);

}  // namespace ttt::data
