#pragma once
// A device that does its work too late or too early: a lazy queue does nothing until somebody waits for it, an eager one
// does everything at once. What is not ordered by the queues' own order and by events then happens in the wrong order,
// every time: a lazy queue that was not waited for has not done its part when an eager one goes on. Its few ops are the CPU's.

#include <deque>
#include <functional>
#include <memory>

#include "core/base/stream.h"

namespace ttt::test {

class LazyQueue final : public DeviceQueue {
 public:
  explicit LazyQueue(bool is_eager) : is_eager_(is_eager) {}

  void add(std::function<void()> work) {
    work_.push_back(std::move(work));
    if (is_eager_) synchronize();
  }
  /// Does the first `count` pieces of work ever added.
  void run_until(std::int64_t count);

  void synchronize() override { run_until(num_done_ + static_cast<std::int64_t>(work_.size())); }
  std::unique_ptr<QueueEvent> record() override;
  /// Its seconds are the pieces of work that all queues did, marks of time among them.
  std::unique_ptr<QueueTime> record_time() override;
  void wait_for(QueueEvent& event) override;
  [[nodiscard]] void* native() const override { return const_cast<LazyQueue*>(this); }

 private:
  bool is_eager_;
  std::deque<std::function<void()>> work_;
  std::int64_t num_done_ = 0;
};

/// Makes it the program's CUDA devices, 0 with lazy queues and 1 with eager ones: add, copy, fill and block_sums_of_squares only.
void use_lazy_device();

}  // namespace ttt::test
