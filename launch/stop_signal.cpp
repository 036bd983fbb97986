#include "launch/stop_signal.h"

#include <unistd.h>

#include <csignal>
#include <ctime>
#include <initializer_list>

#include "core/base/error.h"

namespace ttt::launch {
namespace {

volatile std::sig_atomic_t stop_flag = 0;
timespec first_signal;

// One request may arrive as several signals: Slurm's to the ranks, and the launcher's that forwards its own.
constexpr double kSameRequestSeconds = 1;

void on_signal(int signal) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (stop_flag == 0) {
    first_signal = now;
    stop_flag = 1;
    return;
  }
  const double seconds = static_cast<double>(now.tv_sec - first_signal.tv_sec) +
                         static_cast<double>(now.tv_nsec - first_signal.tv_nsec) * 1e-9;
  if (seconds > kSameRequestSeconds) _exit(128 + signal);
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

bool stop_requested() { return stop_flag != 0; }

void stop_if_requested(std::string_view work) {
  if (stop_requested()) fail(ExitCode::kStoppedEarly, "{} stopped on request", work);
}

}  // namespace ttt::launch
