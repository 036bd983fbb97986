#pragma once
// Ranks that hold copies of the same tensors compare them, bit by bit: a memory or a processor that errs, or a bug that lets
// copies drift apart, is not seen in the loss for a long time.

#include <span>
#include <string>
#include <vector>

#include "core/base/tensor.h"
#include "dist/communicator.h"

namespace ttt::launch {

struct ReplicatedTensor {
  std::string name;
  TensorView values;
};

/// XXH3-128 of the bytes, 32 hexadecimal digits, when all queued before is done.
std::string replica_digest(const TensorView& values, Stream& stream);

/// Throws kReplicasDiffer on every rank unless all hold the same bits: the step, the first tensor that differs, and the
/// ranks that are alone with their bits. One digest travels a rank, and only where those differ one a tensor. Collective.
void check_replicas(const std::vector<ReplicatedTensor>& tensors, std::int64_t step,
                    dist::Communicator& communicator, Stream& stream);

/// The ranks whose digest is not that of the majority; all of them when there is none.
std::vector<std::size_t> odd_ranks(std::span<const std::string> digests);

}  // namespace ttt::launch
