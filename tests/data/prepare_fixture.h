#pragma once
// What the tests of `ttt prepare` share.

#include <algorithm>

#include "data/tokens/prepare.h"
#include "tests/data/temporary_directory.h"

namespace ttt::data {

inline PrepareOptions options_for(const std::string& input, const std::string& output) {
  PrepareOptions options;
  options.inputs = {input};
  options.output_directory = output;
  return options;
}

inline std::vector<std::int64_t> tokens_of(const std::string& directory, Split split) {
  const TokenArray tokens = TokenArray::open({directory}, split);
  std::vector<std::int64_t> out(static_cast<std::size_t>(tokens.num_tokens()));
  tokens.read(0, out);
  return out;
}

inline std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace ttt::data
