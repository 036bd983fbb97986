#pragma once
// Headers of every kind of token file, for token_file.cpp.

#include <string>

#include "data/tokens/token_file.h"

namespace ttt::data {

TokenFileInfo read_shard_header(const std::string& path);
TokenFileInfo read_npy_header(const std::string& path);
/// Tokens of 2 or 4 bytes, unsigned, and nothing else.
TokenFileInfo read_raw_header(const std::string& path, int token_bytes);
/// NAME.bin: Megatron's if NAME.idx is beside it, else llm.c's.
TokenFileInfo read_bin_header(const std::string& path);
/// Reads the whole .idx: 65 unless its sequences follow one another without gaps.
void verify_megatron_index(const TokenFileInfo& info);

inline constexpr const char* kShardFormat = "ttt-token-shard";

}  // namespace ttt::data
