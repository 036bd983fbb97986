#pragma once
// The queue that kernels and collectives are ordered on. On the CPU work is done when a call returns.

namespace ttt {

class Stream {
 public:
  /// Returns when everything queued so far is done.
  void synchronize() const {}
};

}  // namespace ttt
