#include "dist/communication_volume.h"

#include <bit>

namespace ttt::dist {
namespace {

void send(Volume& volume, double bytes, bool is_near) {
  (is_near ? volume.intra_bytes : volume.inter_bytes) += bytes;
  (is_near ? volume.intra_messages : volume.inter_messages) += 1;
}

bool is_power_of_two(std::int64_t value) {
  return std::has_single_bit(static_cast<std::uint64_t>(value));
}

}  // namespace

Volume& Volume::operator+=(const Volume& other) {
  intra_bytes += other.intra_bytes;
  inter_bytes += other.inter_bytes;
  intra_messages += other.intra_messages;
  inter_messages += other.inter_messages;
  return *this;
}

Volume operator*(double times, const Volume& volume) {
  return {times * volume.intra_bytes, times * volume.inter_bytes, times * volume.intra_messages,
          times * volume.inter_messages};
}

bool RankGroup::is_near(std::int64_t distance) const { return distance * stride < ranks_per_node; }

Volume reduce_scatter(double bytes, const RankGroup& group) {
  if (!is_power_of_two(group.ranks)) return all_to_all(bytes, group);
  Volume volume;
  for (std::int64_t distance = 1; distance < group.ranks; distance *= 2) {
    bytes /= 2;
    send(volume, bytes, group.is_near(distance));
  }
  return volume;
}

Volume all_gather(double bytes, const RankGroup& group) { return reduce_scatter(bytes, group); }

Volume all_to_all(double bytes, const RankGroup& group) {
  Volume volume;
  for (std::int64_t distance = 1; distance < group.ranks; ++distance) {
    send(volume, bytes / static_cast<double>(group.ranks), group.is_near(distance));
  }
  return volume;
}

Volume send_to_neighbour(double bytes, const RankGroup& group) {
  Volume volume;
  if (group.ranks > 1) {
    // A group that does not fit in one node crosses a link between nodes at some neighbour: the slowest counts.
    send(volume, bytes, group.is_near(group.ranks - 1));
  }
  return volume;
}

}  // namespace ttt::dist
