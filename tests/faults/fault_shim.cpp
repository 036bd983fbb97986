// Preloaded into a program: counts the calls that change files under TTT_FAULT_DIRECTORY and lets the k-th go wrong.
//
//   TTT_FAULT_AT=k        from 1; 0 counts only, -1 loses power when the program has ended
//   TTT_FAULT_KIND=kill   the process ends at once, before the call
//                  power  the same, and what was not made durable is lost: a file has the bytes of its last fsync, a name
//                         (created, renamed, removed) is there only if its directory was synced since
//                  error  the call fails with EIO
//                  full   it and all later writes fail with ENOSPC
//                  short  a write takes half of its bytes
//                  interrupt  a write fails once with EINTR, as a signal makes it
//                  flip   a write changes one bit, as a bad cable does
//                  wait   nothing but TTT_FAULT_WAIT
//   TTT_FAULT_WAIT=SECONDS  the thread sleeps so long before that call
//   TTT_FAULT_COUNT=FILE  the number of calls is written here at exit
//
// Any number of threads, but one watched call at a time. Overwritten bytes are not brought back by `power`: nothing
// here overwrites.

#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

namespace fs = std::filesystem;

template <typename Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// A name that was made, moved or removed and may be lost again until its directory is synced.
struct NameChange {
  enum class Kind { kMade, kMoved, kRemoved } kind;
  std::string path;
  std::string from;    // kMoved
  std::string backup;  // of what lost this name, if it was a file
};

struct Faults {
  std::string directory = environment("TTT_FAULT_DIRECTORY");
  std::string kind = environment("TTT_FAULT_KIND");
  std::string count_file = environment("TTT_FAULT_COUNT");
  double wait_seconds = std::atof(environment("TTT_FAULT_WAIT").c_str());
  long at = std::atol(environment("TTT_FAULT_AT").c_str());
  std::recursive_mutex mutex;  // of what follows; held during watched calls
  long count = 0;
  bool busy = false;                          // the shim's own calls pass through
  std::map<int, std::string> open_files;      // by descriptor
  std::map<std::string, off_t> synced_bytes;  // of files that were written since their last fsync
  std::vector<NameChange> names;              // not durable yet, in order
  long backups = 0;

  ~Faults();
};

Faults& faults() {
  static Faults all;
  return all;
}

using Lock = std::lock_guard<std::recursive_mutex>;

class OwnCalls {
 public:
  OwnCalls() { faults().busy = true; }
  ~OwnCalls() { faults().busy = false; }
};

bool is_watched(const std::string& path) {
  const Faults& f = faults();
  return !f.busy && !f.directory.empty() && path.starts_with(f.directory);
}

[[noreturn]] void lose_power() {
  const OwnCalls own;
  Faults& f = faults();
  std::error_code ignored;
  for (const auto& [path, bytes] : f.synced_bytes) {
    if (fs::exists(path, ignored)) fs::resize_file(path, std::uintmax_t(bytes), ignored);
  }
  for (auto change = f.names.rbegin(); change != f.names.rend(); ++change) {
    if (change->kind == NameChange::Kind::kMade) fs::remove_all(change->path, ignored);
    if (change->kind == NameChange::Kind::kMoved) fs::rename(change->path, change->from, ignored);
    if (!change->backup.empty()) fs::rename(change->backup, change->path, ignored);
  }
  raise(SIGKILL);
  abort();
}

Faults::~Faults() {
  if (at == -1) lose_power();
  busy = true;
  if (count_file.empty()) return;
  std::FILE* file = std::fopen(count_file.c_str(), "w");
  std::fprintf(file, "%ld\n", count);
  std::fclose(file);
}

// 0 or the errno that the call about to be made shall fail with. `is_write`: full disks hit it.
int next_fault(bool is_write) {
  Faults& f = faults();
  ++f.count;
  if (f.at <= 0 || f.count < f.at) return 0;
  if (f.count == f.at && f.wait_seconds > 0) {
    f.mutex.unlock();  // the other threads go on
    std::this_thread::sleep_for(std::chrono::duration<double>(f.wait_seconds));
    f.mutex.lock();
  }
  if (f.kind == "full") return is_write ? ENOSPC : 0;
  if (f.count > f.at) return 0;
  if (f.kind == "kill") raise(SIGKILL);
  if (f.kind == "power") lose_power();
  if (f.kind == "error") return EIO;
  return 0;
}

bool is_now(const char* kind) {
  const Faults& f = faults();
  return f.kind == kind && f.count == f.at;
}

int failed(int error) {
  errno = error;
  return -1;
}

const std::string* watched_file(int descriptor) {
  Faults& f = faults();
  if (f.busy) return nullptr;
  const auto found = f.open_files.find(descriptor);
  return found == f.open_files.end() ? nullptr : &found->second;
}

std::string parent_of(const std::string& path) { return fs::path(path).parent_path().string(); }

// `path` after a directory above it has moved.
std::string moved(const std::string& path, const std::string& from, const std::string& to) {
  return path == from || path.starts_with(from + "/") ? to + path.substr(from.size()) : path;
}

void before_write(const std::string& path) {
  const OwnCalls own;
  std::error_code error;
  const auto size = fs::file_size(path, error);
  faults().synced_bytes.try_emplace(path, error ? 0 : off_t(size));
}

void after_sync(const std::string& path) {
  Faults& f = faults();
  f.synced_bytes.erase(path);
  // A move that is durable takes along the names below it that are not.
  for (std::size_t i = 0; i < f.names.size(); ++i) {
    const NameChange& move = f.names[i];
    if (move.kind != NameChange::Kind::kMoved || parent_of(move.path) != path) continue;
    for (std::size_t earlier = 0; earlier < i; ++earlier) {
      f.names[earlier].path = moved(f.names[earlier].path, move.from, move.path);
    }
  }
  std::erase_if(f.names, [&](const NameChange& change) { return parent_of(change.path) == path; });
}

// A second name for what is about to lose its own, outside of the watched directory.
std::string backup_of(const std::string& path) {
  const OwnCalls own;
  Faults& f = faults();
  const std::string backup = f.directory + ".backup-" + std::to_string(f.backups++);
  std::error_code error;
  fs::create_hard_link(path, backup, error);
  return error ? std::string() : backup;
}

template <typename Open>
int watched_open(const std::string& path, int flags, Open open) {
  const Lock lock(faults().mutex);
  if (!is_watched(path)) return open();
  const bool changes = (flags & (O_CREAT | O_TRUNC)) != 0;
  struct stat status {};
  const bool existed = stat(path.c_str(), &status) == 0;
  if (changes) {
    if (const int error = next_fault(!existed)) return failed(error);
    if (existed && (flags & O_TRUNC) != 0) faults().synced_bytes[path] = 0;
  }
  const int descriptor = open();
  if (descriptor >= 0) {
    faults().open_files[descriptor] = path;
    if (!existed) faults().names.push_back({NameChange::Kind::kMade, path, "", ""});
  }
  return descriptor;
}

template <typename Write>
ssize_t watched_write(int descriptor, const void* bytes, std::size_t size, Write write) {
  const Lock lock(faults().mutex);
  const std::string* path = watched_file(descriptor);
  if (path == nullptr) return write(bytes, size);
  if (const int error = next_fault(true)) return failed(error);
  if (is_now("interrupt")) return failed(EINTR);
  before_write(*path);
  if (is_now("flip") && size > 0) {
    std::string changed(static_cast<const char*>(bytes), size);
    changed[size / 2] = static_cast<char>(changed[size / 2] ^ 0x10);
    return write(changed.data(), size);
  }
  return write(bytes, is_now("short") && size > 1 ? size / 2 : size);
}

int watched_sync(const char* name, int descriptor) {
  const auto call = real<int(int)>(name);
  const Lock lock(faults().mutex);
  const std::string* path = watched_file(descriptor);
  if (path == nullptr) return call(descriptor);
  if (const int error = next_fault(false)) return failed(error);
  const int result = call(descriptor);
  if (result == 0) after_sync(*path);
  return result;
}

int mode_of(int flags, va_list arguments) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, int) : 0;
}

int watched_unlink(const std::string& path, const std::function<int()>& call) {
  const Lock lock(faults().mutex);
  if (!is_watched(path)) return call();
  if (const int error = next_fault(false)) return failed(error);
  const std::string backup = backup_of(path);
  const int result = call();
  if (result == 0) faults().names.push_back({NameChange::Kind::kRemoved, path, "", backup});
  return result;
}

std::string absolute(int directory, const char* path) {
  if (path[0] == '/' || directory == AT_FDCWD) return path;
  const OwnCalls own;
  return fs::read_symlink("/proc/self/fd/" + std::to_string(directory)).string() + "/" + path;
}

}  // namespace

// The C library's own declarations, so that the names and types match.
extern "C" {

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const int mode = mode_of(flags, arguments);
  va_end(arguments);
  return watched_open(path, flags,
                      [&] { return real<int(const char*, int, ...)>("open")(path, flags, mode); });
}

int open64(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const int mode = mode_of(flags, arguments);
  va_end(arguments);
  return watched_open(
      path, flags, [&] { return real<int(const char*, int, ...)>("open64")(path, flags, mode); });
}

int close(int descriptor) {
  const Lock lock(faults().mutex);
  if (watched_file(descriptor) != nullptr) faults().open_files.erase(descriptor);
  return real<int(int)>("close")(descriptor);
}

ssize_t write(int descriptor, const void* bytes, size_t size) {
  return watched_write(descriptor, bytes, size, [&](const void* from, size_t count) {
    return real<ssize_t(int, const void*, size_t)>("write")(descriptor, from, count);
  });
}

ssize_t pwrite(int descriptor, const void* bytes, size_t size, off_t offset) {
  return watched_write(descriptor, bytes, size, [&](const void* from, size_t count) {
    return real<ssize_t(int, const void*, size_t, off_t)>("pwrite")(descriptor, from, count,
                                                                    offset);
  });
}

ssize_t pwrite64(int descriptor, const void* bytes, size_t size, off64_t offset) {
  return watched_write(descriptor, bytes, size, [&](const void* from, size_t count) {
    return real<ssize_t(int, const void*, size_t, off64_t)>("pwrite64")(descriptor, from, count,
                                                                        offset);
  });
}

int ftruncate(int descriptor, off_t size) noexcept {
  const Lock lock(faults().mutex);
  const std::string* path = watched_file(descriptor);
  if (path != nullptr) {
    if (const int error = next_fault(true)) return failed(error);
    before_write(*path);
  }
  return real<int(int, off_t)>("ftruncate")(descriptor, size);
}

int ftruncate64(int descriptor, off64_t size) noexcept {
  const Lock lock(faults().mutex);
  const std::string* path = watched_file(descriptor);
  if (path != nullptr) {
    if (const int error = next_fault(true)) return failed(error);
    before_write(*path);
  }
  return real<int(int, off64_t)>("ftruncate64")(descriptor, size);
}

int fsync(int descriptor) { return watched_sync("fsync", descriptor); }
int fdatasync(int descriptor) { return watched_sync("fdatasync", descriptor); }

int rename(const char* from, const char* to) noexcept {
  const auto call = real<int(const char*, const char*)>("rename");
  const Lock lock(faults().mutex);
  if (!is_watched(to)) return call(from, to);
  if (const int error = next_fault(false)) return failed(error);
  const std::string old_path = from;
  const std::string new_path = to;
  const std::string replaced = fs::is_regular_file(new_path) ? backup_of(new_path) : "";
  const int result = call(from, to);
  if (result != 0) return result;
  Faults& f = faults();
  for (auto& [descriptor, path] : f.open_files) path = moved(path, old_path, new_path);
  std::map<std::string, off_t> synced_bytes;
  for (const auto& [path, bytes] : f.synced_bytes) {
    synced_bytes[moved(path, old_path, new_path)] = bytes;
  }
  f.synced_bytes = std::move(synced_bytes);
  f.names.push_back({NameChange::Kind::kMoved, new_path, old_path, replaced});
  return result;
}

int mkdir(const char* path, mode_t mode) noexcept {
  const auto call = real<int(const char*, mode_t)>("mkdir");
  const Lock lock(faults().mutex);
  if (!is_watched(path)) return call(path, mode);
  if (const int error = next_fault(true)) return failed(error);
  const int result = call(path, mode);
  if (result == 0) faults().names.push_back({NameChange::Kind::kMade, path, "", ""});
  return result;
}

int unlink(const char* path) noexcept {
  return watched_unlink(path, [&] { return real<int(const char*)>("unlink")(path); });
}

int unlinkat(int directory, const char* path, int flags) noexcept {
  const auto call = [&] {
    return real<int(int, const char*, int)>("unlinkat")(directory, path, flags);
  };
  const Lock lock(faults().mutex);
  return faults().busy ? call() : watched_unlink(absolute(directory, path), call);
}

}  // extern "C"
