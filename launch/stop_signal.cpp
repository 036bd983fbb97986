#include "launch/stop_signal.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <ctime>
#include <initializer_list>

#include "core/base/error.h"

namespace ttt::launch {
namespace {

// Handlers run on any thread, several at a time: all that they share is this one number, which they may touch because it
// has no lock. On a clock that nobody sets; 0: no signal yet.
std::atomic<std::int64_t> first_signal_ns = 0;
static_assert(std::atomic<std::int64_t>::is_always_lock_free);

// One request may arrive as several signals: Slurm's to the ranks, and the launcher's that forwards its own.
constexpr std::int64_t kSameRequestNs = 1'000'000'000;

void on_signal(int signal) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const std::int64_t now_ns = std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
  std::int64_t first_ns = 0;
  if (first_signal_ns.compare_exchange_strong(first_ns, now_ns)) return;
  if (now_ns - first_ns > kSameRequestNs) _exit(128 + signal);
}

}  // namespace

void install_stop_handlers() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) sigaction(signal, &action, nullptr);
  // A terminal that went away is no reason to end; a file that may not grow is an error of the write, which is told.
  for (const int signal : {SIGPIPE, SIGXFSZ}) std::signal(signal, SIG_IGN);
}

bool stop_requested() { return first_signal_ns != 0; }

void stop_if_requested(std::string_view work) {
  if (stop_requested()) fail(ExitCode::kStoppedEarly, "{} stopped on request", work);
}

}  // namespace ttt::launch
