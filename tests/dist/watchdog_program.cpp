// Hangs in the ways a job can hang, under a watchdog with short limits; tests/cluster/watchdog_test.py looks at what
// is said and left. The last rank is the one that does wrong, unless the way says otherwise.

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <string>

#include "core/base/log.h"
#include "dist/launch_environment.h"
#include "dist/watchdog.h"

namespace {

using ttt::dist::Communicator;

// Suspends this process as `scontrol suspend` does all of a job, from a child since it cannot wake itself.
void suspend_for(unsigned seconds) {
  const pid_t self = getpid();
  if (fork() == 0) {
    kill(self, SIGSTOP);
    sleep(seconds);
    kill(self, SIGCONT);
    _exit(0);
  }
}

void misbehave(const std::string& way, Communicator& world) {
  const bool is_last = world.rank() == world.size() - 1;
  if (way == "hang" && is_last) sleep(600);
  if (way == "stop" && is_last) raise(SIGSTOP);
  if (way == "stop_zero" && world.rank() == 0) raise(SIGSTOP);
  if (way == "mismatch" && is_last) {
    ttt::Stream stream;
    world.recv(ttt::Tensor::zeros({1}, ttt::DType::kF64), 0, stream);
  }
}

// All of it takes longer than a step may take without progress.
void behave(Communicator& world, ttt::dist::Watchdog& watchdog) {
  {
    const ttt::dist::PhaseScope scope(watchdog.record(), ttt::dist::Phase::kCheckpoint);
    if (world.rank() == 0) usleep(2'500'000);
    world.barrier();
  }
  for (int i = 0; i < 5; ++i) {
    usleep(500'000);
    watchdog.record().mark_progress();
  }
  world.barrier();
  suspend_for(4);
  usleep(200'000);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string way = argc > 1 ? argv[1] : "";
  ttt::dist::Runtime runtime;
  ttt::log::configure(runtime.world().rank(), "");
  ttt::dist::WatchdogOptions options;
  options.silence_seconds = 2;  // a busy machine may keep a process waiting for one
  options.phase_seconds = {2, 2, 2, 60};
  options.directory = argc > 2 ? argv[2] : "";
  ttt::dist::Watchdog watchdog(runtime.world(), options);
  std::printf("pid %d\n", getpid());
  std::fflush(stdout);
  Communicator& world = runtime.world();
  const ttt::dist::PhaseScope scope(watchdog.record(), ttt::dist::Phase::kStep);
  world.barrier();
  if (way == "behave") {
    behave(world, watchdog);
  } else {
    misbehave(way, world);
  }
  world.barrier();
  watchdog.finish();
  return 0;
}
