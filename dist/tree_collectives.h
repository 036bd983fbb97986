#pragma once
// Reduce-scatter and all-gather of one bucket of a flat buffer, along the fixed tree over ranks.
//
// Axes are reduced one after the other: first over all ranks of the first, then over those of the second. On an axis
// of P ranks the terms are the leaves of dist/tree_reduction.h's tree: neighbours are added first. A bucket is cut at
// multiples of `block` elements in as many parts as there are ranks in all, and every rank ends up with the sum of one
// part. P = 2^k: at distance 1, 2, 4, ... partners halve the parts they both hold and each adds up one half, so that most
// of the traffic is between neighbours. Other P: every rank sends each part to its owner, who adds them up in the tree's order.
//
// Numerics: F32 or F64, one addition a node of the tree, in the elements' own type. No element's sum depends on buckets
//   or parts.
// Errors: those of the communicator; kInternal for a range outside of the buffer.
// Source: MPICH's recursive halving (Thakur et al., IJHPCA 19(1), 2005) with the distances reversed.

#include <cstdint>
#include <vector>

#include "core/base/flat_range.h"
#include "core/base/stream.h"
#include "core/base/tensor.h"
#include "dist/communicator.h"
#include "dist/host_messages.h"

namespace ttt::dist {

class TreeCollectives {
 public:
  /// For `buckets` of a buffer of `dtype`; the communicators must outlive this. Holds half of the largest bucket at most
  /// on 2^k ranks, all of it on others. One stream for all calls.
  TreeCollectives(std::vector<Communicator*> axes, std::int64_t block,
                  const std::vector<FlatRange>& buckets, DType dtype);

  /// The elements of `bucket` that this rank has after reduce_scatter. Maybe none.
  [[nodiscard]] FlatRange owned(const FlatRange& bucket) const;

  /// `flat` [n] holds this rank's terms; afterwards the owned elements are the sums over all ranks, the bucket's others
  /// are spoiled. Collective.
  void reduce_scatter(TensorView flat, const FlatRange& bucket, Stream& stream);
  /// Every rank's owned elements reach all ranks. Collective.
  void all_gather(TensorView flat, const FlatRange& bucket, Stream& stream);

 private:
  std::vector<Communicator*> axes_;
  std::int64_t block_;
  int num_parts_ = 1;
  Tensor scratch_;  // made once: what a queued kernel may still read is never given back
  StagedMessages messages_;
};

/// `sum` [n...] (F32, F64) becomes the sum over ranks, along the same tree with one leaf a rank. Collective.
void all_reduce_along_tree(Communicator& communicator, TensorView sum, Stream& stream);

}  // namespace ttt::dist
