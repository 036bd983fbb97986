#pragma once
// Sums of gradients whose bits do not depend on the number of ranks.
//
// The batch is cut in V virtual shards. Their gradients are the leaves of a fixed tree: adjacent
// nodes are paired level by level, an odd one out passes up. Rank r of P holds the V/P shards from
// r V/P on; when V/P is a power of two these form whole subtrees, so P ranks evaluate the same tree
// as one rank does.
//
//   V = 6:   ((0 + 1) + (2 + 3)) + (4 + 5)
//
// Numerics: F32 or F64, one addition a node, in the elements' own type. Which operand is the left
//   one does not matter: IEEE addition commutes.
// Source: MPICH's recursive halving (Thakur et al., IJHPCA 19(1), 2005) with the distances reversed,
//   1, 2, 4, ..., so that neighbours are added first.

#include <cstdint>
#include <optional>
#include <vector>

#include "core/base/stream.h"
#include "core/base/tensor.h"
#include "dist/communicator.h"

namespace ttt::dist {

/// Throws kUsage, with the nearest valid choices, unless `num_ranks` is 1 or V is num_ranks * 2^k.
void validate_virtual_shards(std::int64_t virtual_shards, int num_ranks);

/// Collective. `sum` [n...] (F32, F64) becomes the sum over ranks, added along the same tree with one leaf a rank.
void all_reduce_along_tree(Communicator& communicator, TensorView sum, Stream& stream);

/// Adds this rank's shards, in order, and then those of all ranks. Holds log2(V/P) + 1 buffers at
/// most, which it keeps between steps.
class TreeAccumulator {
 public:
  /// `shape` and `dtype` (F32, F64) of one gradient buffer.
  TreeAccumulator(const Shape& shape, DType dtype);

  /// A zeroed buffer for the next shard's gradient; valid until `push`. Calling it again before
  /// `push` gives the same buffer, untouched.
  TensorView slot(Stream& stream);
  /// The slot is complete: becomes a leaf of the tree.
  void push(Stream& stream);
  /// Collective. `out` becomes the sum over all shards of all ranks; the next slot starts a new
  /// sum. Every rank must have pushed the same number, one that validate_virtual_shards allows.
  void finish(Communicator& communicator, TensorView out, Stream& stream);

  [[nodiscard]] std::int64_t num_pushed() const { return num_pushed_; }
  [[nodiscard]] std::int64_t num_buffers() const { return num_buffers_; }

 private:
  struct Subtree {
    Tensor sum;
    std::int64_t num_shards = 0;
  };

  Tensor take_buffer();
  void merge_last_two(Stream& stream);

  Shape shape_;
  DType dtype_;
  std::optional<Tensor> slot_;
  std::vector<Subtree> pending_;  // a binary counter: sizes fall strictly from front to back
  std::vector<Tensor> free_;
  std::int64_t num_pushed_ = 0;
  std::int64_t num_buffers_ = 0;
};

}  // namespace ttt::dist
