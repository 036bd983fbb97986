#pragma once
// Every reader of foreign bytes as a fuzz target: what it may do with any input is accept it or throw an Error that
// blames the input. tests/fuzz/replay_test.cpp mutates the seeds in CI; tests/fuzz/fuzz_main.cpp is the entry of libFuzzer.

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace ttt::fuzz {

struct Target {
  std::string name;
  /// Valid inputs. `directory` is an empty folder to work in.
  std::function<std::vector<std::string>(const std::string& directory)> seeds;
  /// Reads `input`. `directory` is a folder of this target alone, kept between calls.
  std::function<void(const std::string& directory, const std::string& input)> read;
};

const std::vector<Target>& targets();

/// Calls `read`. Returns true if the input was accepted, false if it was refused as bad input; throws what else
/// happened: another exception, an Error of another code, or one without a message.
bool accepts(const Target& target, const std::string& directory, const std::string& input);

}  // namespace ttt::fuzz
