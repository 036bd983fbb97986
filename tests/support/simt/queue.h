#pragma once
// The queue of the emulated device. Work is done when a call returns; during a capture it is kept instead, and every
// replay does it again.
//
// What a device would only notice by wrong numbers ends a test here: during a capture the host may neither wait nor touch
// pinned or device memory, and memory that was given back to the pool since the capture is gone for good.

#include <functional>
#include <vector>

#include "core/base/stream.h"

namespace ttt::simt {

class EmulatedQueue final : public DeviceQueue {
 public:
  /// Does `work`, or keeps it.
  void submit(std::function<void()> work);

  void synchronize() override { fail_in_capture("waits for the queue"); }
  std::unique_ptr<QueueEvent> record() override;
  void wait_for(QueueEvent& event) override;
  [[nodiscard]] bool can_capture() const override { return true; }
  void begin_capture() override;
  std::unique_ptr<CapturedWork> end_capture() override;
  void abandon_capture() override;
  [[nodiscard]] void* native() const override { return const_cast<EmulatedQueue*>(this); }

 private:
  void fail_in_capture(const char* what) const;

  bool is_capturing_ = false;
  std::vector<std::function<void()>> captured_;
};

/// On the emulated device's queue; of a stream of the CPU, which kernels' own tests use, `work` is done at once.
void submit(Stream& stream, std::function<void()> work);

}  // namespace ttt::simt
