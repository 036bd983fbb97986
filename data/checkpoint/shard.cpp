#include "data/checkpoint/shard.h"

#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>

#include "data/files.h"
#include "data/hdf5_library.h"

namespace ttt::data {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr hsize_t kPageBytes = 4096;

// Remembers the first failed call. It must be sticky: after a failed write, HDF5's flush and close
// may report success for a file with holes.
class Status {
 public:
  template <typename Result>
  Result operator()(const char* call, Result result) {
    if (result < 0 && message_.empty()) message_ = hdf5_error() + " (" + call + ")";
    return result;
  }
  [[nodiscard]] bool ok() const { return message_.empty(); }
  [[nodiscard]] const std::string& message() const { return message_; }

 private:
  std::string message_;
};

// An HDF5 identifier; what its close returns is kept in the status.
class Handle {
 public:
  Handle(Status& status, const char* call, hid_t id, herr_t (*close)(hid_t))
      : status_(status), id_(status(call, id)), close_(close) {}
  ~Handle() {
    if (id_ >= 0) status_("close", close_(id_));
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  operator hid_t() const { return id_; }  // NOLINT(google-explicit-constructor): for HDF5 calls

 private:
  Status& status_;
  hid_t id_;
  herr_t (*close_)(hid_t);
};

struct Group {
  const char* name = nullptr;
  TensorView flat;
  std::vector<FlatRange> held;  // of the flat buffers, one after the other in `flat`
};

std::array<Group, 3> groups_of(const FlatState& state) {
  const std::vector<FlatRange> all = {{0, flat_size(state.tensors)}};
  const std::vector<FlatRange>& moments = state.moments.empty() ? all : state.moments;
  return {{{"values", state.values, all}, {"m", state.m, moments}, {"v", state.v, moments}}};
}

// What of a slice lies in the buffer.
struct Part {
  std::int64_t skipped = 0;  // elements of the slice before it
  std::int64_t count = 0;
  void* data = nullptr;
};

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

// ---- Writing -------------------------------------------------------------------------------

void write_attribute(Status& status, hid_t object, const char* name,
                     std::span<const std::int64_t> values) {
  const hsize_t count = values.size();
  const Handle space(status, "H5Screate", H5Screate_simple(1, &count, nullptr), H5Sclose);
  const Handle attribute(status, "H5Acreate",
                         H5Acreate2(object, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT),
                         H5Aclose);
  if (count > 0) status("H5Awrite", H5Awrite(attribute, H5T_NATIVE_INT64, values.data()));
}

void write_slice(Status& status, hid_t parent, const Group& group, const Slice& slice) {
  const std::vector<Part> parts = parts_of(slice, group);
  TTT_CHECK(parts.size() == 1 && parts[0].count == slice.count, "{} of {} is not whole on its rank",
            group.name, slice.tensor->name);
  const auto count = static_cast<hsize_t>(slice.count);
  const hid_t type = file_type(group.flat.dtype());
  const Handle space(status, "H5Screate", H5Screate_simple(1, &count, nullptr), H5Sclose);
  const Handle create(status, "H5Pcreate", H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  status("H5Pset_layout", H5Pset_layout(create, H5D_CONTIGUOUS));
  status("H5Pset_alloc_time", H5Pset_alloc_time(create, H5D_ALLOC_TIME_EARLY));
  status("H5Pset_fill_time", H5Pset_fill_time(create, H5D_FILL_TIME_NEVER));
  // Without times equal states give equal files.
  status("H5Pset_obj_track_times", H5Pset_obj_track_times(create, false));
  const Handle dataset(
      status, "H5Dcreate",
      H5Dcreate2(parent, slice.tensor->name.c_str(), type, space, H5P_DEFAULT, create, H5P_DEFAULT),
      H5Dclose);
  if (!status.ok()) return;
  write_attribute(status, dataset, "global_shape", slice.tensor->shape.dims());
  write_attribute(status, dataset, "offset", std::span(&slice.offset, 1));
  status("H5Dwrite", H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, parts[0].data));
}

void write_file(Status& status, const std::string& path, const FlatState& state,
                std::span<const Slice> slices) {
  const Handle access(status, "H5Pcreate", H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  // This format's metadata carries checksums; older ones can be misread after a bit flip.
  status("H5Pset_libver_bounds", H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110));
  status("H5Pset_alignment", H5Pset_alignment(access, kPageBytes, kPageBytes));
  // Not supported by every network file system; the run lock does the work.
  status("H5Pset_file_locking", H5Pset_file_locking(access, false, true));
  status("H5Pset_fclose_degree", H5Pset_fclose_degree(access, H5F_CLOSE_STRONG));
  const Handle create(status, "H5Pcreate", H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  status("H5Pset_obj_track_times", H5Pset_obj_track_times(create, false));  // of the root group
  const Handle file(status, "H5Fcreate", H5Fcreate(path.c_str(), H5F_ACC_TRUNC, create, access),
                    H5Fclose);
  const Handle no_times(status, "H5Pcreate", H5Pcreate(H5P_GROUP_CREATE), H5Pclose);
  status("H5Pset_obj_track_times", H5Pset_obj_track_times(no_times, false));
  for (const Group& group : groups_of(state)) {
    const Handle parent(status, "H5Gcreate",
                        H5Gcreate2(file, group.name, H5P_DEFAULT, no_times, H5P_DEFAULT), H5Gclose);
    for (const Slice& slice : slices) {
      if (!status.ok()) return;
      write_slice(status, parent, group, slice);
    }
  }
  if (status.ok()) status("H5Fflush", H5Fflush(file, H5F_SCOPE_LOCAL));
}

// ---- Reading -------------------------------------------------------------------------------

// Every property of the file is compared with the one value write_shard gives it.
class ShardReader {
 public:
  explicit ShardReader(const std::string& path) : path_(path) {}

  void read(const FlatState& into, std::span<const Slice> slices) {
    const Handle access(status_, "H5Pcreate", H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
    status_("H5Pset_file_locking", H5Pset_file_locking(access, false, true));
    status_("H5Pset_fclose_degree", H5Pset_fclose_degree(access, H5F_CLOSE_STRONG));
    const Handle file(status_, "H5Fopen", H5Fopen(path_.c_str(), H5F_ACC_RDONLY, access), H5Fclose);
    require_ok("");
    for (const Group& group : groups_of(into)) {
      if (!group.flat.empty()) read_group(file, group, slices);
    }
  }

 private:
  void require(bool condition, const std::string& where, const char* expectation) const {
    if (!condition) fail(ExitCode::kCorruptInput, "{}: {} {}", path_, where, expectation);
  }
  void require_ok(const std::string& where) const {
    if (!status_.ok()) {
      fail(ExitCode::kCorruptInput, "{}: {}: {}", path_, where, status_.message());
    }
  }
  // Soft and external links could lead to any file the user may read.
  void require_hard_link(hid_t parent, const char* name, const std::string& where) {
    require(H5Lexists(parent, name, H5P_DEFAULT) > 0, where, "is missing");
    H5L_info_t link{};
    status_("H5Lget_info", H5Lget_info(parent, name, &link, H5P_DEFAULT));
    require_ok(where);
    require(link.type == H5L_TYPE_HARD, where, "is not a hard link");
  }

  void read_group(hid_t file, const Group& group, std::span<const Slice> slices) {
    require_hard_link(file, group.name, group.name);
    const Handle parent(status_, "H5Gopen", H5Gopen2(file, group.name, H5P_DEFAULT), H5Gclose);
    H5G_info_t info{};
    status_("H5Gget_info", H5Gget_info(parent, &info));
    require_ok(group.name);
    require(info.nlinks == slices.size(), group.name, "holds another number of tensors");
    for (const Slice& slice : slices) read_slice(parent, group, slice);
  }

  void read_slice(hid_t parent, const Group& group, const Slice& slice) {
    const std::string where = fmt::format("{}/{}", group.name, slice.tensor->name);
    const char* name = slice.tensor->name.c_str();
    require_hard_link(parent, name, where);
    const Handle dataset(status_, "H5Dopen", H5Dopen2(parent, name, H5P_DEFAULT), H5Dclose);
    require_ok(where);
    const Handle create(status_, "H5Dget_create_plist", H5Dget_create_plist(dataset), H5Pclose);
    const Handle type(status_, "H5Dget_type", H5Dget_type(dataset), H5Tclose);
    const Handle space(status_, "H5Dget_space", H5Dget_space(dataset), H5Sclose);
    require_ok(where);
    require(H5Pget_layout(create) == H5D_CONTIGUOUS, where, "is not contiguous");
    require(H5Pget_external_count(create) == 0, where, "is stored in another file");
    require(H5Pget_nfilters(create) == 0, where, "has a filter");
    const hid_t expected_type = file_type(group.flat.dtype());
    require(H5Tequal(type, expected_type) > 0, where, "has another element type");
    require(has_extent(space, slice.count), where, "has another length");
    const std::int64_t num_bytes = slice.count * size_of(group.flat.dtype());
    require(H5Dget_storage_size(dataset) == static_cast<hsize_t>(num_bytes), where,
            "has another size");
    require_attribute(dataset, "global_shape", slice.tensor->shape.dims(), where);
    require_attribute(dataset, "offset", std::span(&slice.offset, 1), where);
    for (const Part& part : parts_of(slice, group)) read_part(dataset, space, expected_type, part);
    require_ok(where);
  }

  void read_part(hid_t dataset, hid_t space, hid_t type, const Part& part) {
    const auto first = static_cast<hsize_t>(part.skipped);
    const auto count = static_cast<hsize_t>(part.count);
    status_("H5Sselect_hyperslab",
            H5Sselect_hyperslab(space, H5S_SELECT_SET, &first, nullptr, &count, nullptr));
    const Handle memory(status_, "H5Screate", H5Screate_simple(1, &count, nullptr), H5Sclose);
    status_("H5Dread", H5Dread(dataset, type, memory, space, H5P_DEFAULT, part.data));
  }

  static bool has_extent(hid_t space, std::int64_t count) {
    hsize_t extent = 0;
    return H5Sget_simple_extent_type(space) == H5S_SIMPLE &&
           H5Sget_simple_extent_ndims(space) == 1 &&
           H5Sget_simple_extent_dims(space, &extent, nullptr) == 1 &&
           extent == static_cast<hsize_t>(count);
  }

  void require_attribute(hid_t dataset, const char* name, std::span<const std::int64_t> expected,
                         const std::string& dataset_name) {
    const std::string where = fmt::format("{}: {}", dataset_name, name);
    require(H5Aexists(dataset, name) > 0, where, "is missing");
    const Handle attribute(status_, "H5Aopen", H5Aopen(dataset, name, H5P_DEFAULT), H5Aclose);
    const Handle type(status_, "H5Aget_type", H5Aget_type(attribute), H5Tclose);
    const Handle space(status_, "H5Aget_space", H5Aget_space(attribute), H5Sclose);
    require_ok(where);
    require(H5Tequal(type, H5T_STD_I64LE) > 0, where, "has another type");
    require(has_extent(space, std::ssize(expected)), where, "has another length");
    std::array<std::int64_t, Shape::kMaxRank> values{};
    if (!expected.empty()) {
      status_("H5Aread", H5Aread(attribute, H5T_NATIVE_INT64, values.data()));
    }
    require_ok(where);
    require(std::ranges::equal(expected, std::span(values).first(expected.size())), where,
            "has another value");
  }

  std::string path_;
  Status status_;
};

}  // namespace

std::string shard_name(int rank) { return fmt::format("rank-{:05}.h5", rank); }

std::int64_t flat_size(const std::vector<NamedShape>& tensors) {
  std::int64_t count = 0;
  for (const NamedShape& tensor : tensors) count += tensor.shape.numel();
  return count;
}

FlatRange even_range(std::int64_t n, int rank, int world_size) {
  TTT_CHECK(world_size > 0 && rank >= 0 && rank < world_size, "rank {} of {}", rank, world_size);
  return {n * rank / world_size, n * (rank + 1) / world_size};
}

std::vector<Slice> slices_of(const std::vector<NamedShape>& tensors,
                             const std::vector<FlatRange>& ranges) {
  std::vector<Slice> slices;
  std::int64_t position = 0;
  for (const NamedShape& tensor : tensors) {
    const std::int64_t tensor_end = position + tensor.shape.numel();
    for (const FlatRange& range : ranges) {
      const std::int64_t from = std::max(range.begin, position);
      const std::int64_t to = std::min(range.end, tensor_end);
      if (from < to) slices.push_back({&tensor, from, from - position, to - from});
    }
    position = tensor_end;
  }
  return slices;
}

config::FileDigest write_shard(const std::string& directory, int rank,
                               const std::vector<FlatRange>& ranges, const FlatState& state) {
  check_buffers(state, false);
  for (const NamedShape& tensor : state.tensors) {
    TTT_CHECK(
        !tensor.name.empty() && tensor.name != "." && tensor.name.find('/') == std::string::npos,
        "'{}' cannot name a dataset", tensor.name);
  }
  const std::vector<Slice> slices = slices_of(state.tensors, ranges);
  for (std::size_t i = 1; i < slices.size(); ++i) {
    TTT_CHECK(slices[i].tensor != slices[i - 1].tensor, "{} meets two ranges of rank {}",
              slices[i].tensor->name, rank);
  }
  prepare_hdf5_library();
  const std::string path = directory + "/" + shard_name(rank);
  Status status;
  write_file(status, path, state, slices);
  if (!status.ok()) {
    ::unlink(path.c_str());
    fail(ExitCode::kIo, "cannot write {}: {}", path, status.message());
  }
  fsync_file(path);  // HDF5 never does
  config::FileDigest digest;
  digest.set_name(shard_name(rank));
  digest.set_num_bytes(static_cast<std::uint64_t>(file_size_bytes(path)));
  digest.set_xxh3_128(xxh3_128_hex_of_file(path));
  for (const FlatRange& range : ranges) {
    if (range.size() == 0) continue;
    digest.add_range(range.begin);
    digest.add_range(range.end);
  }
  return digest;
}

void read_shard(const std::string& path, const std::vector<FlatRange>& ranges,
                const FlatState& into) {
  check_buffers(into, true);
  prepare_hdf5_library();
  ShardReader(path).read(into, slices_of(into.tensors, ranges));
}

}  // namespace ttt::data
