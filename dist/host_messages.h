#pragma once
// Messages of a device's tensors to where MPI reaches them: through pinned memory. Internal to dist.

#include "core/base/memory.h"
#include "dist/communicator.h"

namespace ttt::dist {

/// Where messages lie from here to the end of the block, the communicator's own too.
class HostMemory : memory::Scope {
 public:
  HostMemory() : Scope({"messages between ranks"}, memory::Place::kPinned) {}
};

/// Whether `communicator` cannot reach what `stream` computes, or reaches it only page by page (managed memory).
inline bool needs_host(const Communicator& communicator, const Stream& stream) {
  return stream.device() == Device::kCuda && !communicator.is_asynchronous();
}

/// `view` where MPI reaches it, when all queued before is done: itself, or a copy of what a device has.
class HostCopy {
 public:
  HostCopy(TensorView view, Stream& stream);

  [[nodiscard]] TensorView view() const { return copy_.empty() ? view_ : copy_.view(); }
  /// What was changed in view(). Returns when it is there.
  void put_back(Stream& stream) const;

 private:
  TensorView view_;
  Tensor copy_;
};

/// Communicator::exchange for one stream. Its pinned memory, as much as the largest message, is made once and reused: the
/// next call's exchange waits for the stream, so no queued copy still reads it.
class StagedMessages {
 public:
  void exchange(Communicator& communicator, TensorView out, TensorView in, int peer,
                Stream& stream);

 private:
  Tensor sent_, received_;
};

}  // namespace ttt::dist
