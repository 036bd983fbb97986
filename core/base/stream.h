#pragma once
// The queue that kernels and collectives are ordered on. On the CPU work is done when a call returns; on a CUDA device
// calls return at once and the work of one stream happens in the order of the calls.

#include <cstdint>
#include <memory>
#include <utility>

#include "core/base/timer.h"

namespace ttt {

enum class Device : std::uint8_t { kCpu, kCuda };

/// A place in a queue.
class QueueEvent {
 public:
  virtual ~QueueEvent() = default;
  /// Returns when everything queued before it is done; throws when any of it failed. On any thread.
  virtual void wait() = 0;
};

/// When a queue reached a place.
class QueueTime {
 public:
  virtual ~QueueTime() = default;
  /// Since the same queue reached `earlier`; both are reached.
  [[nodiscard]] virtual double seconds_since(const QueueTime& earlier) const = 0;
};

/// Of a queue whose work is done when a call returns.
class TimeOfCall final : public QueueTime {
 public:
  [[nodiscard]] double seconds_since(const QueueTime& earlier) const override {
    return static_cast<const TimeOfCall&>(earlier).timer_.seconds() - timer_.seconds();
  }

 private:
  Timer timer_;
};

/// Work that a queue kept (core/base/capture.h). It must not outlive the queue.
class CapturedWork {
 public:
  CapturedWork() = default;
  CapturedWork(const CapturedWork&) = delete;
  CapturedWork& operator=(const CapturedWork&) = delete;
  virtual ~CapturedWork() = default;
  /// Queues it again on the queue that kept it: the same kernels with the same arguments.
  virtual void replay() = 0;
};

/// What a device does for streams: the CUDA runtime, or the emulator of the tests.
class DeviceQueue {
 public:
  virtual ~DeviceQueue() = default;
  /// Returns when everything queued so far is done; throws when any of it failed.
  virtual void synchronize() = 0;
  /// The place reached so far; null when all is done.
  virtual std::unique_ptr<QueueEvent> record() = 0;
  /// What is queued from now on starts after `event`, of a queue of the same device.
  virtual void wait_for(QueueEvent& event) = 0;
  [[nodiscard]] virtual bool can_capture() const { return false; }
  /// From here to end_capture what is queued is kept and does not run.
  virtual void begin_capture() {}
  virtual std::unique_ptr<CapturedWork> end_capture() { return nullptr; }
  /// Ends it without a result. Does not throw.
  virtual void abandon_capture() {}
  /// The cudaStream_t; the emulator's queue (tests/support/simt/queue.h).
  [[nodiscard]] virtual void* native() const = 0;
  /// Where its kernels run. A planning queue (kernels/planning.h) stands for a device, the CPU too, and runs nothing.
  [[nodiscard]] virtual Device device() const { return Device::kCuda; }
  [[nodiscard]] virtual bool is_planning() const { return false; }
  /// When the place that follows is reached.
  virtual std::unique_ptr<QueueTime> record_time() { return std::make_unique<TimeOfCall>(); }
};

class Stream {
 public:
  /// A place in a stream; by default one that was reached.
  class Event {
   public:
    Event() = default;
    explicit Event(std::unique_ptr<QueueEvent> event) : event_(std::move(event)) {}
    /// Returns when everything queued before it is done.
    void wait() const {
      if (event_) event_->wait();
    }

   private:
    friend class Stream;
    std::unique_ptr<QueueEvent> event_;
  };

  /// The CPU.
  Stream() = default;
  /// A CUDA device's queue (kernels/device_ops.h makes them).
  explicit Stream(std::unique_ptr<DeviceQueue> queue) : queue_(std::move(queue)) {}

  [[nodiscard]] Device device() const { return queue_ ? queue_->device() : Device::kCpu; }
  [[nodiscard]] bool is_planning() const { return queue_ && queue_->is_planning(); }
  /// Returns when everything queued so far is done.
  void synchronize() const {
    if (queue_) queue_->synchronize();
  }
  [[nodiscard]] Event record() const { return Event(queue_ ? queue_->record() : nullptr); }
  [[nodiscard]] std::unique_ptr<QueueTime> record_time() const {
    return queue_ ? queue_->record_time() : std::make_unique<TimeOfCall>();
  }
  /// What is queued here from now on starts after `event` of a stream of the same device. Does not block.
  void wait_for(const Event& event) const {
    if (queue_ && event.event_) queue_->wait_for(*event.event_);
  }
  /// Whether core/base/capture.h can keep what is queued here.
  [[nodiscard]] bool can_capture() const { return queue_ && queue_->can_capture(); }
  /// Null: the CPU.
  [[nodiscard]] DeviceQueue* queue() const { return queue_.get(); }
  [[nodiscard]] void* native() const { return queue_ ? queue_->native() : nullptr; }

 private:
  std::unique_ptr<DeviceQueue> queue_;
};

}  // namespace ttt
