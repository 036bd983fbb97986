#pragma once
// A thread that runs jobs one after the other, in the order in which they were added.
//
// Errors: what a job throws ends the thread's work; `check` and `wait` throw it again, on the thread that calls them.

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace ttt::dist {

class JobThread {
 public:
  /// `start` runs first, on the thread.
  explicit JobThread(std::function<void()> start);
  JobThread(const JobThread&) = delete;
  JobThread& operator=(const JobThread&) = delete;
  /// Waits for the job that runs; jobs not begun are dropped.
  ~JobThread();

  /// The number of jobs added so far, this one included.
  std::int64_t add(std::function<void()> job);
  /// Returns when the first `count` jobs are done.
  void wait(std::int64_t count);
  /// Whether `wait(count)` would return at once. Throws if a job has failed.
  [[nodiscard]] bool is_done(std::int64_t count);
  /// Throws if a job has failed.
  void check();

 private:
  void run(const std::function<void()>& start);
  void rethrow() const;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  std::int64_t num_added_ = 0;
  std::int64_t num_done_ = 0;
  bool ends_ = false;
  std::exception_ptr failure_;
  std::thread thread_;  // last: it uses the others
};

}  // namespace ttt::dist
