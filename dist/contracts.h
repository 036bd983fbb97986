#pragma once
// Argument checks that every communicator makes, before any rank talks to another.

#include "core/base/tensor.h"

namespace ttt::dist {

/// Throws unless `in` is [n...] and `out` [size, n...] of the same dtype.
void check_stacked(const char* part_name, const TensorView& part, const char* stack_name,
                   const TensorView& stack, int size);
/// Throws unless both are [size, n...] of one shape and dtype.
void check_all_to_all(const TensorView& in, const TensorView& out, int size);
/// Throws unless the elements can be added up: F64, F32, I64.
void check_summable(const TensorView& view);
/// Throws unless `peer` is another rank.
void check_peer(int peer, int rank, int size);
/// Throws unless `root` is a rank.
void check_root(int root, int size);

}  // namespace ttt::dist
