#pragma once
// How many bytes the ranks of a step send, from the algorithms' formulas alone: docs/planning.md, "Communication".
//
// Numerics: exact for sums by halving (dist/tree_collectives.cpp) up to the rounding of odd halves, which is less than one
//   element a level. All numbers are of the rank that sends most, one direction.
// Source: dist/tree_collectives.h; ZeRO-1: arXiv:1910.02054; exchange of heads: arXiv:2309.14509 (DeepSpeed-Ulysses).

#include <cstdint>

namespace ttt::dist {

/// What one rank sends: bytes and messages, to ranks of its own node and to others.
struct Volume {
  double intra_bytes = 0, inter_bytes = 0;
  double intra_messages = 0, inter_messages = 0;

  [[nodiscard]] double bytes() const { return intra_bytes + inter_bytes; }
  Volume& operator+=(const Volume& other);
};
Volume operator*(double times, const Volume& volume);

/// Ranks [0, ranks), `stride` apart in the world, of whose consecutive ranks `ranks_per_node` share a node.
struct RankGroup {
  std::int64_t ranks = 1;
  std::int64_t stride = 1;
  std::int64_t ranks_per_node = 1;

  /// Whether members `distance` apart in the group are on one node, for groups that start at a multiple of their size.
  [[nodiscard]] bool is_near(std::int64_t distance) const;
};

/// Afterwards each rank has bytes / ranks of the sum (dist/tree_collectives.h): over a power-of-two group partners at distance
/// 1, 2, 4, ... give away half of what both hold; else every rank sends each part to its owner.
Volume reduce_scatter(double bytes, const RankGroup& group);
/// The way back, from which every rank has all: the same bytes in reverse.
Volume all_gather(double bytes, const RankGroup& group);

/// Each rank keeps 1 / ranks of what it has and sends the rest, in equal parts, to the others.
Volume all_to_all(double bytes, const RankGroup& group);
/// To the next rank of the group.
Volume send_to_neighbour(double bytes, const RankGroup& group);

}  // namespace ttt::dist
