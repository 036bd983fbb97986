#include "data/corpus/tar_reader.h"

#include <archive.h>
#include <archive_entry.h>

#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include "core/base/error.h"

namespace ttt::data {
namespace {

// libarchive asks for bytes through C, which an exception must not cross.
struct Feed {
  ByteSource& source;
  std::vector<char> block;
  std::exception_ptr error;
};

la_ssize_t feed_bytes(archive* reader, void* client, const void** bytes) {
  Feed& feed = *static_cast<Feed*>(client);
  *bytes = feed.block.data();
  try {
    return static_cast<la_ssize_t>(feed.source.read(feed.block));
  } catch (...) {
    feed.error = std::current_exception();
    ::archive_set_error(reader, -1, "the stream cannot be read");
    return ARCHIVE_FATAL;
  }
}

std::string kind_of(archive_entry* entry) {
  if (::archive_entry_hardlink(entry) != nullptr) return "a hard link";
  switch (::archive_entry_filetype(entry)) {
    case AE_IFREG:
    case AE_IFDIR:
      return "";
    case AE_IFLNK:
      return "a symbolic link";
    case AE_IFCHR:
    case AE_IFBLK:
      return "a device";
    case AE_IFIFO:
      return "a pipe";
    default:
      return "no file";
  }
}

std::string name_of(archive_entry* entry, std::int64_t number) {
  const char* name = ::archive_entry_pathname(entry);
  if (name == nullptr) name = ::archive_entry_pathname_utf8(entry);  // another locale's
  return name != nullptr ? name : fmt::format("entry {}", number);
}

}  // namespace

void read_tar(ByteSource& source, const std::string& path,
              const std::function<void(TarEntry&)>& visit) {
  Feed feed{source, std::vector<char>(std::size_t{1} << 17), nullptr};
  const std::unique_ptr<archive, decltype(&::archive_read_free)> reader(::archive_read_new(),
                                                                        &::archive_read_free);
  if (reader == nullptr) fail(ExitCode::kOutOfMemory, "no memory to read {}", path);
  const auto check = [&](int status) {
    if (feed.error) std::rethrow_exception(feed.error);
    if (status < ARCHIVE_WARN) {  // a name of another locale is a warning
      const char* reason = ::archive_error_string(reader.get());
      fail(ExitCode::kCorruptInput, "{} is no tar archive or a damaged one: {}", path,
           reason != nullptr ? reason : "unknown error");
    }
  };
  ::archive_read_support_format_tar(reader.get());
  check(::archive_read_open(reader.get(), &feed, nullptr, &feed_bytes, nullptr));
  archive_entry* header = nullptr;
  for (std::int64_t number = 1;; ++number) {
    const int status = ::archive_read_next_header(reader.get(), &header);
    if (status == ARCHIVE_EOF) break;
    check(status);
    TarEntry entry;
    entry.name = name_of(header, number);
    entry.irregular = kind_of(header);
    entry.is_file = entry.irregular.empty() && ::archive_entry_filetype(header) == AE_IFREG;
    entry.num_bytes = ::archive_entry_size(header);
    entry.read = [&] {
      std::string contents(static_cast<std::size_t>(entry.num_bytes), '\0');
      const la_ssize_t count = ::archive_read_data(reader.get(), contents.data(), contents.size());
      check(count < 0 ? static_cast<int>(count) : ARCHIVE_OK);
      if (count != entry.num_bytes) {
        fail(ExitCode::kCorruptInput, "{} ends inside {}", path, entry.name);
      }
      return contents;
    };
    visit(entry);
  }
  // What follows the end is read too: a truncated gzip stream is told only there.
  while (!feed.error && feed.source.read(feed.block) > 0) {
  }
}

}  // namespace ttt::data
