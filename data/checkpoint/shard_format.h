#pragma once
// What writing and reading a shard share: HDF5's handles and errors, and where a slice lies in memory. Internal to
// data/checkpoint.

#include <hdf5.h>

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "data/checkpoint/shard.h"
#include "data/hdf5_library.h"

namespace ttt::data {

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

/// Values, m and v.
std::array<Group, 3> groups_of(const FlatState& state);

// What of a slice lies in the buffer.
struct Part {
  std::int64_t skipped = 0;  // elements of the slice before it
  std::int64_t count = 0;
  void* data = nullptr;
};

std::vector<Part> parts_of(const Slice& slice, const Group& group);

// A piece of the buffers and where it is in the file.
struct Place {
  std::int64_t offset = 0;  // bytes
  std::span<std::byte> content;
  std::string name;  // of group and tensor

  [[nodiscard]] std::int64_t end() const { return offset + std::ssize(content); }
};

/// Of a file that holds exactly these slices, as write_shard lays them out; in the order of the file. Every other property is
/// checked. Errors: 65 naming the file and the dataset.
std::vector<Place> places_of_shard(const std::string& path, const FlatState& state,
                                   std::span<const Slice> slices);

hid_t file_type(DType dtype);

/// The buffers have the elements that `state` says; without values_only_allowed none may be missing.
void check_buffers(const FlatState& state, bool values_only_allowed);

}  // namespace ttt::data
