#pragma once
// What a communicator has moved and how long it took.
//
// Bytes are those of the call's arguments that go to or come from other ranks: exact for messages between two ranks, of
// which dist/tree_collectives.h is made; a library's collective may forward more.

#include <array>
#include <cstdint>

#include "core/base/timer.h"

namespace ttt::dist {

class Traffic {
 public:
  enum Kind { kMessage, kSum, kGather, kAllToAll, kBroadcast, kNumKinds };

  struct Count {
    std::int64_t num_calls = 0;
    std::int64_t bytes_sent = 0;
    std::int64_t bytes_received = 0;
    double seconds = 0;  // in the calls, waiting for others included

    Count& operator+=(const Count& other) {
      num_calls += other.num_calls;
      bytes_sent += other.bytes_sent;
      bytes_received += other.bytes_received;
      seconds += other.seconds;
      return *this;
    }
  };

  [[nodiscard]] const Count& of(Kind kind) const { return counts_[kind]; }
  [[nodiscard]] Count total() const {
    Count sum;
    for (const Count& count : counts_) sum += count;
    return sum;
  }

  /// Counts one call, from construction to destruction.
  class Call {
   public:
    Call(Traffic& traffic, Kind kind, std::int64_t bytes_sent, std::int64_t bytes_received)
        : count_(traffic.counts_[kind]) {
      count_ += {1, bytes_sent, bytes_received, 0};
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    ~Call() { count_.seconds += timer_.seconds(); }

   private:
    Count& count_;
    Timer timer_;
  };

 private:
  std::array<Count, kNumKinds> counts_;
};

}  // namespace ttt::dist
