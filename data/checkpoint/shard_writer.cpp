#include <hdf5.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/timer.h"
#include "data/checkpoint/shard.h"
#include "data/checkpoint/shard_format.h"
#include "data/checkpoint/shard_numbers.h"
#include "data/files.h"

namespace ttt::data {
namespace {

constexpr hsize_t kPageBytes = 4096;

void write_attribute(Status& status, hid_t object, const char* name,
                     std::span<const std::int64_t> values) {
  const hsize_t count = values.size();
  const Handle space(status, "H5Screate", H5Screate_simple(1, &count, nullptr), H5Sclose);
  const Handle attribute(status, "H5Acreate",
                         H5Acreate2(object, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT),
                         H5Aclose);
  if (count > 0) status("H5Awrite", H5Awrite(attribute, H5T_NATIVE_INT64, values.data()));
}

void create_dataset(Status& status, hid_t parent, const Group& group, const Slice& slice) {
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
}

// All but the numbers, which have their place in the file then.
void write_structure(Status& status, const std::string& path, const FlatState& state,
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
      create_dataset(status, parent, group, slice);
    }
  }
  if (status.ok()) status("H5Fflush", H5Fflush(file, H5F_SCOPE_LOCAL));
}

}  // namespace

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
  const Timer timer;
  Status status;
  write_structure(status, path, state, slices);
  if (!status.ok()) {
    ::unlink(path.c_str());
    fail(ExitCode::kIo, "cannot write {}: {}", path, status.message());
  }
  config::FileDigest digest;
  digest.set_name(shard_name(rank));
  digest.set_num_bytes(static_cast<std::uint64_t>(file_size_bytes(path)));
  try {
    const std::vector<Place> places = places_of_shard(path, state, slices);
    write_numbers(path, places);
    const double durable_seconds = timer.seconds();
    digest.set_xxh3_128(read_back(path, places));
    log::info("shard path={} bytes={} durable_seconds={:.3f} read_back_seconds={:.3f}", path,
              digest.num_bytes(), durable_seconds, timer.seconds() - durable_seconds);
  } catch (const Error& error) {
    ::unlink(path.c_str());
    if (error.code() != ExitCode::kCorruptInput) throw;
    fail(ExitCode::kIo, "cannot write {}: it reads back otherwise: {}", path, error.what());
  }
  for (const FlatRange& range : ranges) {
    if (range.size() == 0) continue;
    digest.add_range(range.begin);
    digest.add_range(range.end);
  }
  return digest;
}

}  // namespace ttt::data
