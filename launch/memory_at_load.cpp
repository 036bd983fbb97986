#include "launch/memory_at_load.h"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/base/error.h"

namespace ttt::launch {
namespace {

// OpenBLAS' BUFFER_SIZE on x86-64, and the most threads that Debian's is built for.
constexpr std::size_t kBufferBytes = std::size_t{128} << 20;
constexpr long kMostThreads = 64;

// A positive number that the environment gives `name`, else 0.
long number_of(char** environment, const char* name) {
  const std::size_t length = std::strlen(name);
  for (char** entry = environment; *entry != nullptr; ++entry) {
    if (std::strncmp(*entry, name, length) != 0 || (*entry)[length] != '=') continue;
    return std::max(0L, std::strtol(*entry + length + 1, nullptr, 10));
  }
  return 0;
}

// As OpenBLAS counts them.
long num_threads(char** environment) {
  cpu_set_t set;
  const long processors = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  const long threads = std::min(processors, kMostThreads);
  for (const char* const name : {"OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS"}) {
    const long asked_for = number_of(environment, name);
    if (asked_for > 0) return std::min(threads, asked_for);
  }
  return threads;
}

}  // namespace

void check_memory_at_load(int /*argc*/, char** /*argv*/, char** environment) {
  const long threads = num_threads(environment);
  std::array<void*, kMostThreads> buffers{};
  long taken = 0;
  while (taken < threads) {  // held together, as OpenBLAS does
    void* const buffer =
        mmap(nullptr, kBufferBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) break;
    buffers[static_cast<std::size_t>(taken++)] = buffer;
  }
  for (long i = 0; i < taken; ++i) munmap(buffers[static_cast<std::size_t>(i)], kBufferBytes);
  if (taken == threads) return;
  std::array<char, 300> text{};
  const int length = std::snprintf(
      text.data(), text.size(),
      "out of memory: OpenBLAS takes 128 MiB a thread (threads: %ld) before the program begins. "
      "Lower OMP_NUM_THREADS or raise the process's limit (ulimit -d, -v)\n",
      threads);
  // Whether it could be told changes nothing.
  (void)(write(STDERR_FILENO, text.data(), static_cast<std::size_t>(length)) < 0);
  _exit(static_cast<int>(ExitCode::kOutOfMemory));
}

}  // namespace ttt::launch
