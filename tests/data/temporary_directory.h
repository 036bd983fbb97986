#pragma once
// A directory for one test, and what is done with files and errors in all of data's tests.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "core/base/error.h"

namespace ttt::data {

class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(
      const std::filesystem::path& parent = std::filesystem::temp_directory_path()) {
    std::string name = (parent / "ttt-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) fail(ExitCode::kIo, "no temporary directory");
    path_ = name;
  }
  ~TemporaryDirectory() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  [[nodiscard]] const std::string& str() const { return path_; }
  [[nodiscard]] std::string path(const std::string& name) const { return path_ + "/" + name; }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path(name); }
  /// Writes a file, with the directories above it, and returns its path.
  [[nodiscard]] std::string write(const std::string& name, std::string_view bytes) const {
    const std::string file = path(name);
    std::filesystem::create_directories(std::filesystem::path(file).parent_path());
    std::ofstream(file, std::ios::binary) << bytes;
    return file;
  }
  void write_over(const std::string& name, std::string_view bytes) const {
    static_cast<void>(write(name, bytes));
  }

 private:
  std::string path_;
};

inline std::string contents_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Expects Error(code) from `function`, with each of `parts` in its message.
template <typename Function>
void expect_error(ExitCode code, std::initializer_list<std::string> parts, Function function) {
  try {
    function();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    for (const std::string& part : parts) EXPECT_THAT(error.what(), testing::HasSubstr(part));
    return;
  }
  ADD_FAILURE() << "no error of code " << static_cast<int>(code);
}

template <typename Function>
void expect_error(ExitCode code, const std::string& part, Function function) {
  expect_error(code, std::initializer_list<std::string>{part}, function);
}

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace ttt::data
