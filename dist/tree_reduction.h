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
// Here are the levels within a rank; dist/tree_collectives.h has those between ranks.
//
// Numerics: F32 or F64, one addition a node, in the elements' own type. Which operand is the left
//   one does not matter: IEEE addition commutes.
// Source: none.

#include <cstdint>
#include <optional>
#include <vector>

#include "core/base/flat_range.h"
#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::dist {

/// Throws kUsage, with the nearest valid choices, unless `num_ranks` is 1 or V is num_ranks * 2^k.
void validate_virtual_shards(std::int64_t virtual_shards, int num_ranks);

/// Adds this rank's shards, in order. Holds log2(V/P) + 1 buffers at most, which it keeps between steps.
class TreeAccumulator {
 public:
  /// `shape` and `dtype` (F32, F64) of one gradient buffer.
  TreeAccumulator(const Shape& shape, DType dtype);

  /// A zeroed buffer for the next shard's gradient; valid until `push`. Calling it again before
  /// `push` gives the same buffer, untouched. After `merge` it starts a new sum.
  TensorView slot(Stream& stream);
  /// The slot is complete: becomes a leaf of the tree. For all shards but the last, whose slot is merged.
  void push(Stream& stream);
  /// The slot is the last shard's and complete in `range`: adds up all shards there. Returns the flat buffer [n] that
  /// holds the sums, always the same one; valid until the next `slot`.
  TensorView merge(const FlatRange& range, Stream& stream);

  [[nodiscard]] std::int64_t num_pushed() const { return num_pushed_; }
  [[nodiscard]] std::int64_t num_buffers() const { return num_buffers_; }

 private:
  struct Subtree {
    Tensor sum;
    std::int64_t num_shards = 0;
  };

  Tensor take_buffer();
  void merge_last_two(Stream& stream);
  void start_anew();

  Shape shape_;
  DType dtype_;
  std::optional<Tensor> slot_;
  bool is_merging_ = false;
  std::vector<Subtree> pending_;  // a binary counter: sizes fall strictly from front to back
  std::vector<Tensor> free_;
  std::int64_t num_pushed_ = 0;
  std::int64_t num_buffers_ = 0;
};

}  // namespace ttt::dist
