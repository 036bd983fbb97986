#include "launch/stop_signal.h"

#include <unistd.h>

#include <csignal>
#include <initializer_list>

namespace ttt::launch {
namespace {

volatile std::sig_atomic_t stop_flag = 0;

void on_signal(int signal) {
  if (stop_flag != 0) _exit(128 + signal);
  stop_flag = 1;
}

}  // namespace

void install_stop_handlers() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) sigaction(signal, &action, nullptr);
}

bool stop_requested() { return stop_flag != 0; }

}  // namespace ttt::launch
