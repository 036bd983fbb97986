#pragma once
// Headers of the two kinds of token file, for token_file.cpp.

#include <string>

#include "data/tokens/token_file.h"

namespace ttt::data {

TokenFileInfo read_shard_header(const std::string& path);
TokenFileInfo read_npy_header(const std::string& path);

inline constexpr const char* kShardFormat = "ttt-token-shard";

}  // namespace ttt::data
