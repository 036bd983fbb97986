#include "data/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/base/log.h"

namespace ttt::data {
namespace {

std::string hex_of(XXH128_hash_t hash) {
  return fmt::format("{:016x}{:016x}", std::uint64_t{hash.high64}, std::uint64_t{hash.low64});
}

std::string directory_of(const std::string& path) {
  const auto parent = std::filesystem::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

}  // namespace

void fail_with_errno(std::string_view action, const std::string& path, int errno_value) {
  ExitCode code = ExitCode::kIo;
  if (errno_value == ENOENT || errno_value == ENOTDIR) code = ExitCode::kMissingInput;
  if (errno_value == EACCES || errno_value == EPERM || errno_value == EROFS) {
    code = ExitCode::kPermission;
  }
  if (errno_value == EEXIST || errno_value == ENOTEMPTY) code = ExitCode::kLocked;
  fail(code, "cannot {} {}: {}", action, path, std::strerror(errno_value));
}

void make_output_directory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error) return;
  const bool is_forbidden = error == std::errc::permission_denied ||
                            error == std::errc::operation_not_permitted ||
                            error == std::errc::read_only_file_system;
  fail(is_forbidden ? ExitCode::kPermission : ExitCode::kIo, "cannot create the directory {}: {}",
       path, error.message());
}

FileDescriptor::FileDescriptor(const std::string& path, int flags, unsigned mode) : path_(path) {
  do {
    fd_ = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0) fail_with_errno("open", path, errno);
}

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0 && ::close(fd_) != 0) {
    log::warning("event=close_failed path={} error=\"{}\"", path_, std::strerror(errno));
  }
}

FileDescriptor::FileDescriptor(FileDescriptor&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}

std::int64_t FileDescriptor::size_bytes() const {
  struct stat status {};
  if (::fstat(fd_, &status) != 0) fail_with_errno("stat", path_, errno);
  return status.st_size;
}

void FileDescriptor::read_at(std::int64_t offset, std::span<std::byte> out) const {
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t count = ::pread(fd_, out.data() + done, out.size() - done,
                                  offset + static_cast<std::int64_t>(done));
    if (count < 0) {
      if (errno == EINTR) continue;
      fail_with_errno("read", path_, errno);
    }
    if (count == 0) {
      fail(ExitCode::kCorruptInput, "{} ends at byte {}, {} bytes were expected there", path_,
           offset + static_cast<std::int64_t>(done), out.size() - done);
    }
    done += static_cast<std::size_t>(count);
  }
}

void FileDescriptor::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd_, bytes.data(), bytes.size());
    if (count < 0) {
      if (errno == EINTR) continue;
      fail_with_errno("write", path_, errno);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
}

void FileDescriptor::sync() {
  if (::fsync(fd_) != 0) fail_with_errno("fsync", path_, errno);
}

void FileDescriptor::close() {
  const int fd = std::exchange(fd_, -1);
  if (fd >= 0 && ::close(fd) != 0) fail_with_errno("close", path_, errno);
}

void write_file_atomically(const std::string& path, std::string_view contents) {
  const std::string temporary = fmt::format("{}.tmp-{}", path, ::getpid());
  try {
    FileDescriptor file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    file.write(std::as_bytes(std::span(contents.data(), contents.size())));
    file.sync();
    file.close();
    rename_durably(temporary, path);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

void fsync_directory(const std::string& path) {
  FileDescriptor directory(path, O_RDONLY | O_DIRECTORY);
  directory.sync();
}

void fsync_file(const std::string& path) {
  FileDescriptor file(path, O_RDONLY);
  file.sync();
}

void expect_content(const std::string& path, std::string_view content) {
  const FileDescriptor file(path, O_RDONLY);
  std::string found(content.size(), '\0');
  const bool has_size = file.size_bytes() == std::ssize(content);
  if (has_size) file.read_at(0, std::as_writable_bytes(std::span(found)));
  if (!has_size || found != content) {
    fail(ExitCode::kIo, "cannot write {}: it reads back otherwise", path);
  }
}

void rename_durably(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail_with_errno("rename to", to, errno);
  fsync_directory(directory_of(to));
}

std::int64_t file_size_bytes(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) fail_with_errno("stat", path, errno);
  return status.st_size;
}

std::string read_text_file(const std::string& path, std::int64_t limit_bytes) {
  const FileDescriptor file(path, O_RDONLY);
  const std::int64_t size = file.size_bytes();
  if (size > limit_bytes) {
    fail(ExitCode::kCorruptInput, "{} has {} bytes; at most {} are read", path, size, limit_bytes);
  }
  std::string text(static_cast<std::size_t>(size), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  return text;
}

void Xxh3Digest::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

Xxh3Digest::Xxh3Digest() : state_(XXH3_createState()) {
  if (state_ == nullptr) fail(ExitCode::kOutOfMemory, "no memory for a digest");
  XXH3_128bits_reset(state_.get());
}

void Xxh3Digest::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
}

std::string Xxh3Digest::hex() const { return hex_of(XXH3_128bits_digest(state_.get())); }

std::string xxh3_128_hex_of_file(const std::string& path) {
  const FileDescriptor file(path, O_RDONLY);
  Xxh3Digest digest;
  constexpr std::int64_t kBlockBytes = std::int64_t{1} << 18;  // stays in the cache
  std::vector<std::byte> block(static_cast<std::size_t>(kBlockBytes));
  const std::int64_t size = file.size_bytes();
  for (std::int64_t offset = 0; offset < size; offset += kBlockBytes) {
    const auto count = static_cast<std::size_t>(std::min(kBlockBytes, size - offset));
    file.read_at(offset, std::span(block).first(count));
    digest.update(std::span(block).first(count));
  }
  return digest.hex();
}

std::string xxh3_128_hex(std::span<const std::byte> bytes) {
  return hex_of(XXH3_128bits(bytes.data(), bytes.size()));
}

std::size_t find_invalid_utf8(std::string_view text) {
  // A lead byte and the range its first continuation may have (RFC 3629, section 4).
  struct Lead {
    unsigned first, last, low, high, length;
  };
  constexpr std::array<Lead, 9> kLeads = {{{0x00, 0x7f, 0x00, 0x00, 1},
                                           {0xc2, 0xdf, 0x80, 0xbf, 2},
                                           {0xe0, 0xe0, 0xa0, 0xbf, 3},
                                           {0xe1, 0xec, 0x80, 0xbf, 3},
                                           {0xed, 0xed, 0x80, 0x9f, 3},
                                           {0xee, 0xef, 0x80, 0xbf, 3},
                                           {0xf0, 0xf0, 0x90, 0xbf, 4},
                                           {0xf1, 0xf3, 0x80, 0xbf, 4},
                                           {0xf4, 0xf4, 0x80, 0x8f, 4}}};
  const auto byte_at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  std::size_t at = 0;
  while (at < text.size()) {
    const unsigned lead = byte_at(at);
    if (lead < 0x80) {
      ++at;
      continue;
    }
    const Lead* found = nullptr;
    for (const Lead& row : kLeads) {
      if (lead >= row.first && lead <= row.last) found = &row;
    }
    if (found == nullptr || at + found->length > text.size()) return at;
    if (byte_at(at + 1) < found->low || byte_at(at + 1) > found->high) return at;
    for (std::size_t i = 2; i < found->length; ++i) {
      if ((byte_at(at + i) & 0xc0U) != 0x80) return at;
    }
    at += found->length;
  }
  return text.size();
}

}  // namespace ttt::data
