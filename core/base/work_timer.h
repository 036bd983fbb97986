#pragma once
// How long a stream works between two places of its queue, without what it waits there for others.

#include <cstddef>
#include <memory>
#include <vector>

#include "core/base/stream.h"

namespace ttt {

class WorkTimer {
 public:
  /// Begins the work, then ends it, begins it again, and so on: a wait is between two marks.
  void mark(const Stream& stream) { marks_.push_back(stream.record_time()); }
  /// Of work that has ended, once the stream has done it.
  [[nodiscard]] double seconds() const {
    double sum = 0;
    for (std::size_t i = 1; i < marks_.size(); i += 2)
      sum += marks_[i]->seconds_since(*marks_[i - 1]);
    return sum;
  }

 private:
  std::vector<std::unique_ptr<QueueTime>> marks_;
};

}  // namespace ttt
