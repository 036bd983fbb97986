#pragma once
// One rank's HDF5 file of a checkpoint. Internal to data/checkpoint.

#include <string>
#include <vector>

#include "data/checkpoint/checkpoint.h"

namespace ttt::data {

/// The part of one tensor that falls into a rank's flat range.
struct Slice {
  const NamedShape* tensor = nullptr;
  std::int64_t flat_begin = 0;  // in the flat buffers
  std::int64_t offset = 0;      // of the slice in the flattened tensor
  std::int64_t count = 0;
};

/// "rank-00000.h5"
std::string shard_name(int rank);

/// Number of elements of all tensors.
std::int64_t flat_size(const std::vector<NamedShape>& tensors);

/// The non-empty slices of [n * rank / world_size, n * (rank + 1) / world_size), in flat order.
/// The result points into `tensors`.
std::vector<Slice> slices_of_rank(const std::vector<NamedShape>& tensors, int rank, int world_size);

/// Reads a shard whose digest has been verified. The file must hold exactly the slices of this
/// rank, stored the way write_shard stores them. Errors: 65 naming the file and the dataset.
void read_shard(const std::string& path, int rank, int world_size, const FlatState& into);

}  // namespace ttt::data
