#include "dist/posted_messages.h"

#include <algorithm>
#include <chrono>

#include "core/base/timer.h"
#include "dist/mpi_check.h"

namespace ttt::dist {
namespace {

bool lets_threads_communicate() {
  int provided = MPI_THREAD_SINGLE;
  TTT_MPI_CHECK(MPI_Query_thread(&provided));
  return provided == MPI_THREAD_MULTIPLE;
}

}  // namespace

PostedMessages::~PostedMessages() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  if (failure_ || std::uncaught_exceptions() > 0) {
    (void)new std::vector<Posted>(std::move(messages_));  // MPI may still read them
    return;
  }
  for (Posted& posted : messages_) MPI_Wait(&posted.request, MPI_STATUS_IGNORE);
}

void PostedMessages::add(const Tensor& message, MPI_Request request) {
  {
    const std::lock_guard lock(mutex_);
    messages_.push_back({message, request});
    if (failure_) std::rethrow_exception(failure_);
    const bool have_left = test_all();
    // Here: a tensor's memory goes back on the thread that took it.
    std::erase_if(messages_,
                  [](const Posted& posted) { return posted.request == MPI_REQUEST_NULL; });
    if (have_left) return;
  }
  if (!thread_.joinable() && lets_threads_communicate()) thread_ = std::thread([this] { watch(); });
  changed_.notify_all();
}

bool PostedMessages::test_all() {
  bool is_empty = true;
  for (Posted& posted : messages_) {
    int is_done = 0;
    TTT_MPI_CHECK(MPI_Test(&posted.request, &is_done, MPI_STATUS_IGNORE));
    is_empty = is_empty && is_done != 0;
  }
  return is_empty;
}

// Looks often at first, when a message's receiver is likely there, then rarely.
void PostedMessages::watch() {
  constexpr double kLongestPause = 200e-6;
  std::unique_lock lock(mutex_);
  try {
    std::size_t num_messages = 0;
    for (Timer since_change; !ends_;) {
      if (test_all()) {
        changed_.wait(lock);
        continue;
      }
      if (messages_.size() != num_messages) since_change.restart();
      num_messages = messages_.size();
      const double pause = std::clamp(since_change.seconds() / 16, 10e-6, kLongestPause);
      changed_.wait_for(lock, std::chrono::duration<double>(pause));
    }
  } catch (...) {
    failure_ = std::current_exception();
  }
}

}  // namespace ttt::dist
