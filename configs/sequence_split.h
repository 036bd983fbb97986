#pragma once
// How a sequence is cut over the ranks that hold it together (docs/parallelism.md, "Sequence parallelism").

#include <cstdint>
#include <vector>

#include "configs/run.pb.h"

namespace ttt::config {

/// STATE_PASSING or HEAD_EXCHANGE, whatever AUTO stands for.
ParallelConfig::SequenceExchange resolve_sequence_exchange(const RunConfig& config);

/// Sequences are cut between units of this many tokens: mini-batches where a TTT state is passed on, else single
/// tokens. 0: they cannot be cut, since the whole sequence is one mini-batch.
std::int64_t sequence_unit(const RunConfig& config);

/// `parts` + 1 positions: part r is [bounds[r], bounds[r+1]). Units are whole, except that the last part ends with the
/// sequence, and parts differ by one unit at most. None is empty if there are as many units as parts.
std::vector<std::int64_t> sequence_bounds(std::int64_t length, std::int64_t unit,
                                          std::int64_t parts);

}  // namespace ttt::config
