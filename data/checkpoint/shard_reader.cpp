#include <algorithm>
#include <array>
#include <span>

#include "data/checkpoint/shard_format.h"

namespace ttt::data {
namespace {

// Every property of the file is compared with the one value write_shard gives it.
class ShardReader {
 public:
  /// What happens to the buffers it is given.
  enum class Use { kFill, kLocate };

  ShardReader(const std::string& path, Use use) : path_(path), use_(use) {}

  [[nodiscard]] const std::vector<Place>& places() const { return places_; }

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
    for (const Part& part : parts_of(slice, group)) {
      take_part(dataset, space, expected_type, part, where);
    }
    require_ok(where);
  }

  void take_part(hid_t dataset, hid_t space, hid_t type, const Part& part,
                 const std::string& where) {
    if (use_ == Use::kFill) return read_elements(dataset, space, type, part);
    const haddr_t begin = H5Dget_offset(dataset);
    require(begin != HADDR_UNDEF, where, "has no place in the file");
    const auto element = static_cast<std::int64_t>(H5Tget_size(type));
    places_.push_back(
        {static_cast<std::int64_t>(begin) + part.skipped * element,
         {static_cast<std::byte*>(part.data), static_cast<std::size_t>(part.count * element)},
         where});
  }

  void read_elements(hid_t dataset, hid_t space, hid_t type, const Part& part) {
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
  Use use_;
  std::vector<Place> places_;
  Status status_;
};

}  // namespace

void read_shard(const std::string& path, std::span<const Slice> slices, const FlatState& into) {
  check_buffers(into, true);
  prepare_hdf5_library();
  ShardReader(path, ShardReader::Use::kFill).read(into, slices);
}

std::vector<Place> places_of_shard(const std::string& path, const FlatState& state,
                                   std::span<const Slice> slices) {
  ShardReader reader(path, ShardReader::Use::kLocate);
  reader.read(state, slices);
  std::vector<Place> places = reader.places();
  std::ranges::sort(places, {}, &Place::offset);
  return places;
}

}  // namespace ttt::data
