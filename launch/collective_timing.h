#pragma once
// How fast the ranks exchange data: every operation of dist/communicator.h against the size of its message.

#include <string>
#include <vector>

#include "dist/communicator.h"

namespace ttt::launch {

struct CollectiveTime {
  std::string operation;
  std::int64_t bytes = 0;  // of one rank's part, as the operation's own documentation counts it
  double seconds = 0;      // median over repetitions, of the slowest rank
  double gigabytes_per_second = 0;  // bytes / seconds; 0 for what moves none
};

/// Messages of 4 bytes to `largest_bytes`, sixteen times as large each. `stream` says where the tensors lie. Collective.
std::vector<CollectiveTime> time_collectives(dist::Communicator& communicator,
                                             std::int64_t largest_bytes, Stream& stream);

/// Between rank 0 and rank `peer`, half a round trip of 4 bytes and of 1 MiB; nothing on other ranks. Collective.
struct LinkTime {
  double latency_seconds = 0;
  double gigabytes_per_second = 0;
};
LinkTime time_link(dist::Communicator& communicator, int peer, Stream& stream);

/// How many seconds the wall clock of rank `peer` is ahead of rank 0's; on rank 0, 0 elsewhere. From the fastest of
/// some round trips: off by less than half of its time. Collective.
double clock_offset(dist::Communicator& communicator, int peer);

}  // namespace ttt::launch
