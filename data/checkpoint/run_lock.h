#pragma once
// One run at a time owns an output directory.

#include <string>

#include "data/files.h"

namespace ttt::data {

/// Holds an exclusive flock on RUN/run.lock; the kernel drops it when the process ends, however it
/// ends. Creates the directory if missing. Throws kLocked naming the owner's host and pid.
class RunLock {
 public:
  explicit RunLock(const std::string& run_directory);

 private:
  // The file is never removed: two runs could then lock different files of the same name.
  FileDescriptor file_;
};

}  // namespace ttt::data
