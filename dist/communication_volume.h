#pragma once
// How many bytes the ranks of a step send, from the algorithms' formulas alone: docs/planning.md, "Communication".
//
// Numerics: exact for sums by halving (dist/tree_reduction.cpp) up to the rounding of odd halves, which is less than one
//   element a level. All numbers are of the rank that sends most, one direction.
// Source: dist/tree_reduction.h; ZeRO-1: arXiv:1910.02054; exchange of heads: arXiv:2309.14509 (DeepSpeed-Ulysses).

#include <cstdint>

namespace ttt::dist {

/// What one rank sends: bytes and messages, to ranks of its own node and to others.
struct Traffic {
  double intra_bytes = 0, inter_bytes = 0;
  double intra_messages = 0, inter_messages = 0;

  [[nodiscard]] double bytes() const { return intra_bytes + inter_bytes; }
  Traffic& operator+=(const Traffic& other);
};
Traffic operator*(double times, const Traffic& traffic);

/// Ranks [0, ranks), `stride` apart in the world, of whose consecutive ranks `ranks_per_node` share a node.
struct RankGroup {
  std::int64_t ranks = 1;
  std::int64_t stride = 1;
  std::int64_t ranks_per_node = 1;

  /// Whether members `distance` apart in the group are on one node, for groups that start at a multiple of their size.
  [[nodiscard]] bool is_near(std::int64_t distance) const;
};

/// The first half of a sum over a power-of-two group: partners at distance 1, 2, 4, ... give away half of the range that
/// both hold. Afterwards each rank has bytes / ranks of the sum.
Traffic reduce_scatter_by_halving(double bytes, const RankGroup& group);
/// The way back, from which every rank has all: the same bytes in reverse.
Traffic all_gather_by_doubling(double bytes, const RankGroup& group);
/// Any number of ranks: whole buffers up a binary tree, then one broadcast, counted as a binary tree too. Of the root,
/// which receives ceil(log2 ranks) buffers and sends as many.
Traffic sum_through_root(double bytes, const RankGroup& group);
/// Gradients: by halving for powers of two, else through the root (TreeAccumulator::finish).
Traffic tree_sum(double bytes, const RankGroup& group);

/// Each rank keeps 1 / ranks of what it has and sends the rest, in equal parts, to the others.
Traffic all_to_all(double bytes, const RankGroup& group);
/// To the next rank of the group.
Traffic send_to_neighbour(double bytes, const RankGroup& group);

}  // namespace ttt::dist
