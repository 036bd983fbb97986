#include "tests/support/simt/queue.h"

#include "core/base/error.h"
#include "core/base/memory.h"
#include "tests/support/simt/device_memory.h"

namespace ttt::simt {
namespace {

class EmulatedGraph final : public CapturedWork {
 public:
  explicit EmulatedGraph(std::vector<std::function<void()>> work) : work_(std::move(work)) {}

  void replay() override {
    memory::release_free_blocks();  // whatever still uses one meets closed pages
    for (const auto& work : work_) work();
  }

 private:
  std::vector<std::function<void()>> work_;
};

}  // namespace

void EmulatedQueue::fail_in_capture(const char* what) const {
  TTT_CHECK(!is_capturing_, "the host {} during a capture", what);
}

void EmulatedQueue::submit(std::function<void()> work) {
  if (!is_capturing_) return work();
  captured_.push_back(std::move(work));
}

std::unique_ptr<QueueEvent> EmulatedQueue::record() {
  fail_in_capture("records an event");
  return nullptr;
}

void EmulatedQueue::wait_for(QueueEvent& /*event*/) { fail_in_capture("orders queues"); }

void EmulatedQueue::begin_capture() {
  fail_in_capture("begins a capture");
  captured_.clear();
  is_capturing_ = true;
  close_pinned(true);
}

std::unique_ptr<CapturedWork> EmulatedQueue::end_capture() {
  abandon_capture();
  return std::make_unique<EmulatedGraph>(std::exchange(captured_, {}));
}

void EmulatedQueue::abandon_capture() {
  close_pinned(false);
  is_capturing_ = false;
}

void submit(Stream& stream, std::function<void()> work) {
  if (stream.native() == nullptr) return work();
  static_cast<EmulatedQueue*>(stream.native())->submit(std::move(work));
}

}  // namespace ttt::simt
