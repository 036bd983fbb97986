#pragma once
// One rank's HDF5 file of a checkpoint. Internal to data/checkpoint.

#include <span>
#include <string>
#include <vector>

#include "data/checkpoint/checkpoint.h"

namespace ttt::data {

/// The part of one tensor that falls into a rank's flat range.
struct Slice {
  const NamedShape* tensor = nullptr;
  std::int64_t flat_begin = 0;  // of the slice in the flat buffers
  std::int64_t offset = 0;      // of the slice in the flattened tensor
  std::int64_t count = 0;
};

/// "rank-00000.h5"
std::string shard_name(int rank);

/// Number of elements of a flat buffer.
std::int64_t flat_size(const std::vector<NamedShape>& tensors);

/// The range of rank r of P in format version 1.
FlatRange even_range(std::int64_t n, int rank, int world_size);

/// The ranges of every rank's shard. Errors: 65 unless they cover the flat buffers once.
std::vector<std::vector<FlatRange>> ranges_of_shards(const config::CheckpointManifest& manifest);

/// The non-empty slices of ascending `ranges`, in flat order. The result points into `tensors`.
std::vector<Slice> slices_of(const std::vector<NamedShape>& tensors,
                             const std::vector<FlatRange>& ranges);

/// The same slices where the tensors of their names lie in the buffers of `into`.
std::vector<Slice> placed(std::vector<Slice> slices, const FlatState& into);

/// Reads a shard whose digest has been verified. The file must hold exactly these slices, which are placed, stored the way
/// write_shard stores them. Errors: 65 naming the file and the dataset.
void read_shard(const std::string& path, std::span<const Slice> slices, const FlatState& into);

}  // namespace ttt::data
