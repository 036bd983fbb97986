#include "data/checkpoint/shard_format.h"

#include <algorithm>
#include <bit>
#include <map>

namespace ttt::data {

static_assert(std::endian::native == std::endian::little);

std::array<Group, 3> groups_of(const FlatState& state) {
  const std::vector<FlatRange> all = {{0, flat_size(state.tensors)}};
  const std::vector<FlatRange>& values = state.held.empty() ? all : state.held;
  const std::vector<FlatRange>& moments = state.moments.empty() ? all : state.moments;
  return {{{"values", state.values, values}, {"m", state.m, moments}, {"v", state.v, moments}}};
}

std::vector<Part> parts_of(const Slice& slice, const Group& group) {
  std::vector<Part> parts;
  std::int64_t position = 0;  // of the range in the buffer
  for (const FlatRange& range : group.held) {
    const std::int64_t begin = std::max(range.begin, slice.flat_begin);
    const std::int64_t end = std::min(range.end, slice.flat_begin + slice.count);
    if (begin < end) {
      const std::int64_t offset = position + begin - range.begin;
      parts.push_back(
          {begin - slice.flat_begin, end - begin,
           static_cast<std::byte*>(group.flat.raw()) + offset * size_of(group.flat.dtype())});
    }
    position += range.size();
  }
  return parts;
}

hid_t file_type(DType dtype) {
  TTT_CHECK(dtype == DType::kF32 || dtype == DType::kF64, "checkpoints hold F32 or F64, not {}",
            name_of(dtype));
  return dtype == DType::kF32 ? H5T_IEEE_F32LE : H5T_IEEE_F64LE;
}

void check_buffers(const FlatState& state, bool values_only_allowed) {
  for (const Group& group : groups_of(state)) {
    std::int64_t count = 0;
    for (const FlatRange& range : group.held) count += range.size();
    const bool is_moment = group.name != std::string("values");
    if (values_only_allowed && is_moment && group.flat.empty()) continue;
    expect_shape(group.name, group.flat, {count});
    TTT_CHECK(group.flat.dtype() == state.values.dtype(), "{} is {}, but values are {}", group.name,
              name_of(group.flat.dtype()), name_of(state.values.dtype()));
  }
}

std::string shard_name(int rank) { return fmt::format("rank-{:05}.h5", rank); }

std::int64_t flat_size(const std::vector<NamedShape>& tensors) {
  return tensors.empty() ? 0 : tensors.back().end();
}

FlatRange even_range(std::int64_t n, int rank, int world_size) {
  TTT_CHECK(world_size > 0 && rank >= 0 && rank < world_size, "rank {} of {}", rank, world_size);
  return {n * rank / world_size, n * (rank + 1) / world_size};
}

std::vector<Slice> placed(std::vector<Slice> slices, const FlatState& into) {
  std::map<std::string_view, std::int64_t> begins;
  for (const NamedShape& tensor : into.tensors) begins[tensor.name] = tensor.begin;
  for (Slice& slice : slices) slice.flat_begin = begins.at(slice.tensor->name) + slice.offset;
  return slices;
}

std::vector<Slice> slices_of(const std::vector<NamedShape>& tensors,
                             const std::vector<FlatRange>& ranges) {
  std::vector<Slice> slices;
  for (const NamedShape& tensor : tensors) {
    for (const FlatRange& range : ranges) {
      const std::int64_t from = std::max(range.begin, tensor.begin);
      const std::int64_t to = std::min(range.end, tensor.end());
      if (from < to) slices.push_back({&tensor, from, from - tensor.begin, to - from});
    }
  }
  return slices;
}

}  // namespace ttt::data
