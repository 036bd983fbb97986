#include "dist/tree_collectives.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "kernels/activation.h"
#include "kernels/copy.h"

namespace ttt::dist {
namespace {

bool is_power_of_two(int value) { return std::has_single_bit(static_cast<unsigned>(value)); }

/// Parts [first, first + count) of a bucket.
struct Parts {
  int first = 0;
  int count = 1;

  [[nodiscard]] Parts part(int index, int of) const {
    return {first + count / of * index, count / of};
  }
  /// What a rank keeps, and what it gives to its partner, when they halve these parts.
  [[nodiscard]] Parts kept(int rank, int distance) const {
    return part((rank & distance) == 0 ? 0 : 1, 2);
  }
  [[nodiscard]] Parts given(int rank, int distance) const {
    return part((rank & distance) == 0 ? 1 : 0, 2);
  }
};

struct Cut {
  FlatRange bucket;
  std::int64_t block = 1;  // elements
  int num_parts = 1;

  [[nodiscard]] std::int64_t bound(int part) const {
    const std::int64_t num_blocks = (bucket.size() + block - 1) / block;
    return std::min(bucket.end, bucket.begin + num_blocks * part / num_parts * block);
  }
  [[nodiscard]] FlatRange range(const Parts& parts) const {
    return {bound(parts.first), bound(parts.first + parts.count)};
  }
};

TensorView view_of(const TensorView& flat, const FlatRange& range) {
  return flat.slice(range.begin, range.end);
}

/// The parts left to a rank after the axis has been reduced.
Parts after_axis(const Communicator& axis, Parts parts) {
  const int rank = axis.rank();
  if (!is_power_of_two(axis.size())) return parts.part(rank, axis.size());
  for (int distance = 1; distance < axis.size(); distance *= 2) parts = parts.kept(rank, distance);
  return parts;
}

/// Both know what the other has: no message where there is nothing.
void exchange(Communicator& axis, const TensorView& out, const TensorView& in, int peer,
              StagedMessages& messages, Stream& stream) {
  if (out.numel() > 0 || in.numel() > 0) messages.exchange(axis, out, in, peer, stream);
}

/// Calls function(peer) for every other rank; when all ranks do, they meet in pairs.
template <typename Function>
void for_each_peer(const Communicator& axis, const Function& function) {
  const int size = axis.size();
  for (int round = 0; round < size; ++round) {
    const int peer = (round - axis.rank() + size) % size;
    if (peer != axis.rank()) function(peer);
  }
}

void reduce_by_halving(Communicator& axis, const Cut& cut, Parts parts, const TensorView& flat,
                       const TensorView& scratch, StagedMessages& messages, Stream& stream) {
  const int rank = axis.rank();
  for (int distance = 1; distance < axis.size(); distance *= 2) {
    const TensorView kept = view_of(flat, cut.range(parts.kept(rank, distance)));
    const TensorView given = view_of(flat, cut.range(parts.given(rank, distance)));
    const TensorView term = scratch.slice(0, kept.numel());
    exchange(axis, given, term, rank ^ distance, messages, stream);
    if (kept.numel() > 0) kernels::add(term, kept, stream);
    parts = parts.kept(rank, distance);
  }
}

void gather_by_doubling(Communicator& axis, const Cut& cut, const Parts& parts,
                        const TensorView& flat, StagedMessages& messages, Stream& stream) {
  const int rank = axis.rank();
  std::vector<Parts> before = {parts};  // of each halving
  for (int distance = 1; distance < axis.size(); distance *= 2) {
    before.push_back(before.back().kept(rank, distance));
  }
  for (int distance = axis.size() / 2; distance >= 1; distance /= 2) {
    before.pop_back();
    exchange(axis, view_of(flat, cut.range(before.back().kept(rank, distance))),
             view_of(flat, cut.range(before.back().given(rank, distance))), rank ^ distance,
             messages, stream);
  }
}

/// The terms of this rank's part, added in the order of the tree; `scratch` holds those of the others.
void reduce_directly(Communicator& axis, const Cut& cut, const Parts& parts, const TensorView& flat,
                     const TensorView& scratch, StagedMessages& messages, Stream& stream) {
  const int size = axis.size();
  const TensorView mine = view_of(flat, cut.range(parts.part(axis.rank(), size)));
  std::vector<TensorView> terms(static_cast<std::size_t>(size), mine);
  const auto term = [&](int rank) -> TensorView& { return terms[static_cast<std::size_t>(rank)]; };
  std::int64_t used = 0;
  for_each_peer(axis, [&](int peer) {
    term(peer) = scratch.slice(used, used + mine.numel());
    used += mine.numel();
    exchange(axis, view_of(flat, cut.range(parts.part(peer, size))), term(peer), peer, messages,
             stream);
  });
  if (mine.numel() == 0) return;
  for (int distance = 1; distance < size; distance *= 2) {
    for (int rank = 0; rank + distance < size; rank += 2 * distance) {
      kernels::add(term(rank + distance), term(rank), stream);
    }
  }
  if (axis.rank() != 0) kernels::copy(term(0), mine, stream);
}

void gather_directly(Communicator& axis, const Cut& cut, const Parts& parts, const TensorView& flat,
                     StagedMessages& messages, Stream& stream) {
  const TensorView mine = view_of(flat, cut.range(parts.part(axis.rank(), axis.size())));
  for_each_peer(axis, [&](int peer) {
    exchange(axis, mine, view_of(flat, cut.range(parts.part(peer, axis.size()))), peer, messages,
             stream);
  });
}

/// Elements that the reduction of `parts` receives beside those in the buffer.
std::int64_t num_received(const Communicator& axis, const Cut& cut, const Parts& parts) {
  if (axis.size() == 1) return 0;
  if (is_power_of_two(axis.size())) return cut.range(parts.kept(axis.rank(), 1)).size();
  return (axis.size() - 1) * cut.range(parts.part(axis.rank(), axis.size())).size();
}

}  // namespace

TreeCollectives::TreeCollectives(std::vector<Communicator*> axes, std::int64_t block,
                                 const std::vector<FlatRange>& buckets, DType dtype)
    : axes_(std::move(axes)), block_(block) {
  TTT_CHECK(block >= 1, "blocks of {} elements", block);
  for (const Communicator* axis : axes_) num_parts_ *= axis->size();
  std::int64_t most = 0;
  for (const FlatRange& bucket : buckets) {
    Parts parts{0, num_parts_};
    for (const Communicator* axis : axes_) {
      most = std::max(most, num_received(*axis, {bucket, block_, num_parts_}, parts));
      parts = after_axis(*axis, parts);
    }
  }
  scratch_ = {{most}, dtype};
}

FlatRange TreeCollectives::owned(const FlatRange& bucket) const {
  Parts parts{0, num_parts_};
  for (const Communicator* axis : axes_) parts = after_axis(*axis, parts);
  return Cut{bucket, block_, num_parts_}.range(parts);
}

void TreeCollectives::reduce_scatter(TensorView flat, const FlatRange& bucket, Stream& stream) {
  const Cut cut{bucket, block_, num_parts_};
  Parts parts{0, cut.num_parts};
  for (Communicator* axis : axes_) {
    if (is_power_of_two(axis->size())) {
      reduce_by_halving(*axis, cut, parts, flat, scratch_, messages_, stream);
    } else {
      reduce_directly(*axis, cut, parts, flat, scratch_, messages_, stream);
    }
    parts = after_axis(*axis, parts);
  }
}

void TreeCollectives::all_gather(TensorView flat, const FlatRange& bucket, Stream& stream) {
  const Cut cut{bucket, block_, num_parts_};
  std::vector<Parts> before = {{0, cut.num_parts}};  // of each axis
  for (const Communicator* axis : axes_) before.push_back(after_axis(*axis, before.back()));
  for (std::size_t i = axes_.size(); i-- > 0;) {
    if (is_power_of_two(axes_[i]->size())) {
      gather_by_doubling(*axes_[i], cut, before[i], flat, messages_, stream);
    } else {
      gather_directly(*axes_[i], cut, before[i], flat, messages_, stream);
    }
  }
}

void all_reduce_along_tree(Communicator& communicator, TensorView sum, Stream& stream) {
  const FlatRange all{0, sum.numel()};
  const TensorView flat = sum.reshape({sum.numel()});
  TreeCollectives collectives({&communicator}, 1, {all}, sum.dtype());
  collectives.reduce_scatter(flat, all, stream);
  collectives.all_gather(flat, all, stream);
}

}  // namespace ttt::dist
