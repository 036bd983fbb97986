#pragma once
// A device on which every op is free but the inner loop, which sleeps: what remains of a step is the schedule between
// ranks, on however few processors.

#include "core/base/stream.h"

namespace ttt::bench {

/// The inner loop takes `seconds` a row of the batch in forward and twice that in backward. Called once.
Stream make_sleeping_stream(double seconds);

}  // namespace ttt::bench
