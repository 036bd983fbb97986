#pragma once
// Files that grow line by line and must survive a killed process.

#include <string>
#include <string_view>

namespace ttt::launch {

/// Every `append` reaches the operating system before it returns.
class AppendFile {
 public:
  /// Opens or creates. Throws kIo or kPermission with the path.
  explicit AppendFile(const std::string& path);
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;
  ~AppendFile();

  void append(std::string_view bytes);
  void sync();

 private:
  std::string path_;
  int descriptor_;
};

/// Throws kMissingInput or kIo with the path.
std::string read_file(const std::string& path);

/// Replaces a file whole: a crash leaves the old content or the new one.
void replace_file(const std::string& path, std::string_view content);

}  // namespace ttt::launch
