#pragma once
// core/sequence_exchange.h over a communicator.

#include <memory>

#include "core/sequence_exchange.h"
#include "dist/communicator.h"

namespace ttt::dist {

/// The exchange among the ranks of `sequence`, which must outlive it; null for one rank. Throws kInternal when the split
/// is for another number of ranks.
std::unique_ptr<SequenceExchange> make_sequence_exchange(const SequenceSplit& split,
                                                         Communicator& sequence);

}  // namespace ttt::dist
