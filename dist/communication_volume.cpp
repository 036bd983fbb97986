#include "dist/communication_volume.h"

#include <bit>

namespace ttt::dist {
namespace {

void send(Traffic& traffic, double bytes, bool is_near) {
  (is_near ? traffic.intra_bytes : traffic.inter_bytes) += bytes;
  (is_near ? traffic.intra_messages : traffic.inter_messages) += 1;
}

bool is_power_of_two(std::int64_t value) {
  return std::has_single_bit(static_cast<std::uint64_t>(value));
}

}  // namespace

Traffic& Traffic::operator+=(const Traffic& other) {
  intra_bytes += other.intra_bytes;
  inter_bytes += other.inter_bytes;
  intra_messages += other.intra_messages;
  inter_messages += other.inter_messages;
  return *this;
}

Traffic operator*(double times, const Traffic& traffic) {
  return {times * traffic.intra_bytes, times * traffic.inter_bytes, times * traffic.intra_messages,
          times * traffic.inter_messages};
}

bool RankGroup::is_near(std::int64_t distance) const { return distance * stride < ranks_per_node; }

Traffic reduce_scatter_by_halving(double bytes, const RankGroup& group) {
  Traffic traffic;
  for (std::int64_t distance = 1; distance < group.ranks; distance *= 2) {
    bytes /= 2;
    send(traffic, bytes, group.is_near(distance));
  }
  return traffic;
}

Traffic all_gather_by_doubling(double bytes, const RankGroup& group) {
  return reduce_scatter_by_halving(bytes, group);
}

Traffic sum_through_root(double bytes, const RankGroup& group) {
  Traffic traffic;
  for (std::int64_t distance = 1; distance < group.ranks; distance *= 2) {
    send(traffic, bytes, group.is_near(distance));  // up, on the partner's side
    send(traffic, bytes, group.is_near(distance));  // and down again
  }
  return traffic;
}

Traffic tree_sum(double bytes, const RankGroup& group) {
  if (!is_power_of_two(group.ranks)) return sum_through_root(bytes, group);
  Traffic traffic = reduce_scatter_by_halving(bytes, group);
  traffic += all_gather_by_doubling(bytes, group);
  return traffic;
}

Traffic all_to_all(double bytes, const RankGroup& group) {
  Traffic traffic;
  for (std::int64_t distance = 1; distance < group.ranks; ++distance) {
    send(traffic, bytes / static_cast<double>(group.ranks), group.is_near(distance));
  }
  return traffic;
}

Traffic send_to_neighbour(double bytes, const RankGroup& group) {
  Traffic traffic;
  if (group.ranks > 1) {
    // A group that does not fit in one node crosses a link between nodes at some neighbour: the slowest counts.
    send(traffic, bytes, group.is_near(group.ranks - 1));
  }
  return traffic;
}

}  // namespace ttt::dist
