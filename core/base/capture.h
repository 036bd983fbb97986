#pragma once
// Work that is queued many times by one call each: for many short kernels, whose time is that of queueing them.

#include <memory>

#include "core/base/memory.h"
#include "core/base/stream.h"

namespace ttt {

/// While it lives, what is queued on a stream that can_capture() is kept instead of running. Tensors made meanwhile by
/// this thread come from `blocks`, to which they must have returned at the end, and which must live as long as the result, as
/// must all that the kernels read and write.
///
/// Meanwhile nobody may wait for the stream, and the host must not touch those tensors. The same kernels should have run
/// before, so that nothing is left to be loaded or chosen.
class Capture {
 public:
  Capture(const Stream& stream, memory::Reserve& blocks);
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  /// Without `end`, as when an error passes, what was kept is dropped.
  ~Capture();

  std::unique_ptr<CapturedWork> end();

 private:
  memory::Reserve::Use use_;
  DeviceQueue* queue_;  // null once it has ended
};

}  // namespace ttt
