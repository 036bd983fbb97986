#pragma once
// One run at a time owns an output directory.

#include <string>

namespace ttt::data {

/// Holds an exclusive flock on RUN/run.lock; the kernel drops it when the process ends, however it
/// ends. Creates the directory if missing. Throws kLocked naming the owner's host and pid.
class RunLock {
 public:
  explicit RunLock(const std::string& run_directory);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int descriptor_ = -1;
};

}  // namespace ttt::data
