#pragma once
// One line on the terminal when a signal such as SIGSEGV ends the process: which rank, where, in which step. And who
// is to blame when it is not the program: a file that shrank while it was mapped.

#include <cstddef>
#include <cstdint>
#include <string>

namespace ttt::crash {

/// From here on SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGABRT print `event=crash WHO in step N: ended by SIGNAL` before they
/// do what they did. A SIGBUS within a mapped file ends the process with ExitCode::kCorruptInput instead and names the file.
void install(const std::string& who);

/// For the report: the step that runs, from 1.
void note_step(std::int64_t step);

/// Tells the report that [base, base + size) is `path`, until the object goes. Thread safe.
class MappedFile {
 public:
  MappedFile(const void* base, std::size_t size, const std::string& path);
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

 private:
  struct Mapping* mapping_;
};

/// The mapped file that `address` lies in, or null. Safe in a signal handler.
const char* path_at(const void* address);

}  // namespace ttt::crash
