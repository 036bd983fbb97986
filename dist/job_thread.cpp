#include "dist/job_thread.h"

#include <utility>

namespace ttt::dist {

JobThread::JobThread(std::function<void()> start)
    : thread_([this, begin = std::move(start)] { run(begin); }) {}

JobThread::~JobThread() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::int64_t JobThread::add(std::function<void()> job) {
  std::int64_t count = 0;
  {
    const std::lock_guard lock(mutex_);
    rethrow();
    jobs_.push_back(std::move(job));
    count = ++num_added_;
  }
  changed_.notify_all();
  return count;
}

void JobThread::wait(std::int64_t count) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return failure_ != nullptr || num_done_ >= count; });
  rethrow();
}

bool JobThread::is_done(std::int64_t count) {
  const std::lock_guard lock(mutex_);
  rethrow();
  return num_done_ >= count;
}

void JobThread::check() {
  const std::lock_guard lock(mutex_);
  rethrow();
}

void JobThread::rethrow() const {
  if (failure_ != nullptr) std::rethrow_exception(failure_);
}

void JobThread::run(const std::function<void()>& start) {
  std::function<void()> job = start;
  bool is_start = true;
  for (;;) {
    try {
      job();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      failure_ = std::current_exception();
      changed_.notify_all();
      return;
    }
    std::unique_lock lock(mutex_);
    num_done_ += is_start ? 0 : 1;
    is_start = false;
    changed_.notify_all();
    changed_.wait(lock, [&] { return ends_ || !jobs_.empty(); });
    if (ends_) return;
    job = std::move(jobs_.front());
    jobs_.pop_front();
  }
}

}  // namespace ttt::dist
