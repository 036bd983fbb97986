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

/// Tokens before a segment that a convolution of this model needs; 0 without one.
std::int64_t convolution_halo(const ModelConfig& model);

/// With data.reset_at_bos: documents of up to so many tokens cannot be cut over the ranks that hold a window together,
/// since every part needs a unit and every part but the last a convolution's halo. A checked window can be cut.
std::int64_t longest_uncut_document(const RunConfig& config);
/// Longer ones are cut: a rank's share of the window, or what cannot be cut.
std::int64_t longest_whole_document(const RunConfig& config);

}  // namespace ttt::config
