#include "data/checkpoint/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "core/base/error.h"
#include "core/base/log.h"

namespace ttt::data {
namespace {

std::string read_owner(const FileDescriptor& file) {
  std::array<char, 512> buffer{};
  const ssize_t count = ::pread(file.get(), buffer.data(), buffer.size(), 0);
  std::string owner(buffer.data(), count > 0 ? static_cast<std::size_t>(count) : 0);
  while (!owner.empty() && owner.back() == '\n') owner.pop_back();
  return owner.empty() ? "another process" : owner;
}

}  // namespace

RunLock::RunLock(const std::string& run_directory) {
  make_output_directory(run_directory);
  file_ = FileDescriptor(std::filesystem::path(run_directory) / "run.lock", O_RDWR | O_CREAT);
  if (::flock(file_.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      fail(ExitCode::kLocked, "{} is in use by the run of {}", run_directory, read_owner(file_));
    }
    fail(ExitCode::kLocked, "cannot lock {}: {}", file_.path(), std::strerror(errno));
  }
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  const std::string owner = fmt::format("host={} pid={}\n", host.data(), ::getpid());
  if (::ftruncate(file_.get(), 0) != 0 ||
      ::pwrite(file_.get(), owner.data(), owner.size(), 0) < 0) {
    // The text is for people only: the lock is held.
    log::warning("event=lock_owner_not_written path={} error=\"{}\"", file_.path(),
                 std::strerror(errno));
  }
}

}  // namespace ttt::data
