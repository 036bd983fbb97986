#include "core/base/capture.h"

#include <utility>

#include "core/base/error.h"

namespace ttt {

Capture::Capture(const Stream& stream, memory::Reserve& blocks)
    : use_(blocks), queue_(stream.queue()) {
  TTT_CHECK(stream.can_capture(), "a stream that keeps no work");
  queue_->begin_capture();
}

Capture::~Capture() {
  if (queue_ != nullptr) queue_->abandon_capture();
}

std::unique_ptr<CapturedWork> Capture::end() {
  TTT_CHECK(queue_ != nullptr, "a capture that has ended");
  return std::exchange(queue_, nullptr)->end_capture();
}

}  // namespace ttt
