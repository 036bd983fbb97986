#include "launch/append_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "core/base/error.h"

namespace ttt::launch {
namespace {

[[noreturn]] void fail_errno(const char* action, const std::string& path) {
  const int error = errno;
  const ExitCode code = error == EACCES || error == EPERM ? ExitCode::kPermission : ExitCode::kIo;
  fail(code, "cannot {} {}: {}", action, path, std::strerror(error));
}

int open_or_fail(const std::string& path, int flags) {
  const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  if (descriptor < 0) {
    fail_errno("open", path);
  }
  return descriptor;
}

}  // namespace

AppendFile::AppendFile(const std::string& path)
    : path_(path), descriptor_(open_or_fail(path, O_WRONLY | O_CREAT | O_APPEND)) {}

AppendFile::~AppendFile() { ::close(descriptor_); }

void AppendFile::append(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written < 0) {
      fail_errno("write", path_);
    }
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
}

void AppendFile::sync() {
  if (::fdatasync(descriptor_) != 0) {
    fail_errno("sync", path_);
  }
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    fail(ExitCode::kMissingInput, "cannot read {}", path);
  }
  std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) {
    fail(ExitCode::kIo, "reading {} failed", path);
  }
  return content;
}

void replace_file(const std::string& path, std::string_view content) {
  const std::string temporary = path + ".tmp";
  std::filesystem::remove(temporary);
  {
    AppendFile file(temporary);
    file.append(content);
    file.sync();
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    fail_errno("replace", path);
  }
  // The new name itself is on the disk only when its directory is.
  const std::string parent = std::filesystem::path(path).parent_path().string();
  const int directory = open_or_fail(parent.empty() ? "." : parent, O_RDONLY | O_DIRECTORY);
  const int result = ::fsync(directory);
  ::close(directory);
  if (result != 0) {
    fail_errno("sync the directory of", path);
  }
}

}  // namespace ttt::launch
