#include "data/direct_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "core/base/error.h"

namespace ttt::data {
namespace {

constexpr std::size_t kBlockBytes = 4096;                 // no disk has larger logical blocks
constexpr std::size_t kMostBytes = std::size_t{4} << 20;  // of a call: disks are at their speed

// Whether the disk can take it from there.
bool is_aligned(const std::byte* bytes) {
  return reinterpret_cast<std::uintptr_t>(bytes) % kBlockBytes == 0;
}

}  // namespace

void DirectFile::Free::operator()(std::byte* bytes) const { std::free(bytes); }

DirectFile::DirectFile(const std::string& path, Use use)
    : cached_(path, use == Use::kWrite ? O_WRONLY : O_RDONLY),
      direct_(path, use == Use::kWrite ? O_WRONLY : O_RDONLY),
      has_direct_(::fcntl(direct_.get(), F_SETFL, O_DIRECT) == 0) {
  if (!has_direct_) return;
  buffer_.reset(static_cast<std::byte*>(std::aligned_alloc(kBlockBytes, kMostBytes)));
  if (buffer_ == nullptr) fail(ExitCode::kOutOfMemory, "no memory for a buffer of {}", path);
}

DirectFile::Step DirectFile::step_at(std::int64_t offset, std::size_t remaining) const {
  if (!has_direct_) return {false, remaining};
  const std::size_t past_block = static_cast<std::size_t>(offset) % kBlockBytes;
  if (past_block != 0 || remaining < kBlockBytes) {
    return {false, std::min(remaining, kBlockBytes - past_block)};
  }
  return {true, std::min(remaining / kBlockBytes * kBlockBytes, kMostBytes)};
}

int DirectFile::descriptor(const Step& step) const {
  return step.is_direct ? direct_.get() : cached_.get();
}

void DirectFile::require_retry(const Step& step, const char* action) {
  if (errno == EINTR) return;
  // Some file systems accept the flag and refuse the call.
  if (!step.is_direct || errno != EINVAL) fail_with_errno(action, cached_.path(), errno);
  has_direct_ = false;
}

void DirectFile::write_at(std::int64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const Step step = step_at(offset, bytes.size());
    const std::byte* from = bytes.data();
    if (step.is_direct && !is_aligned(from)) {
      std::memcpy(buffer_.get(), from, step.count);
      from = buffer_.get();
    }
    const ssize_t count = ::pwrite(descriptor(step), from, step.count, offset);
    if (count < 0) {
      require_retry(step, "write");
      continue;
    }
    offset += count;
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
}

void DirectFile::read_at(std::int64_t offset, std::span<std::byte> out) {
  while (!out.empty()) {
    const Step step = step_at(offset, out.size());
    std::byte* const to = step.is_direct && !is_aligned(out.data()) ? buffer_.get() : out.data();
    const ssize_t count = ::pread(descriptor(step), to, step.count, offset);
    if (count < 0) {
      require_retry(step, "read");
      continue;
    }
    if (count == 0) {
      fail(ExitCode::kCorruptInput, "{} ends at byte {}, {} bytes were expected there",
           cached_.path(), offset, out.size());
    }
    if (to != out.data()) std::memcpy(out.data(), to, static_cast<std::size_t>(count));
    offset += count;
    out = out.subspan(static_cast<std::size_t>(count));
  }
}

}  // namespace ttt::data
