#pragma once
// HDF5 identifiers that close themselves, and the check every HDF5 call goes through.

#include <hdf5.h>

#include <string>
#include <utility>

#include "core/base/error.h"
#include "data/hdf5_library.h"

namespace ttt::data {

/// An identifier; H5Idec_ref closes whatever kind it is.
class Hdf5Handle {
 public:
  explicit Hdf5Handle(hid_t id) : id_(id) {}
  ~Hdf5Handle() {
    if (id_ >= 0) H5Idec_ref(id_);
  }
  Hdf5Handle(Hdf5Handle&& other) noexcept : id_(std::exchange(other.id_, -1)) {}
  Hdf5Handle(const Hdf5Handle&) = delete;
  Hdf5Handle& operator=(const Hdf5Handle&) = delete;
  Hdf5Handle& operator=(Hdf5Handle&&) = delete;

  [[nodiscard]] hid_t get() const { return id_; }
  /// Closes now and returns what HDF5 says, which a destructor could not report.
  herr_t close() {
    const hid_t id = id_;
    id_ = -1;
    return id < 0 ? 0 : static_cast<herr_t>(H5Idec_ref(id));
  }

 private:
  hid_t id_;
};

}  // namespace ttt::data

/// Evaluates an HDF5 call; a negative result throws Error(`code`) with `path` and HDF5's reason.
#define TTT_HDF5(call, code, path)                                              \
  [&] {                                                                         \
    const auto hdf5_result = (call);                                            \
    if (hdf5_result < 0) {                                                      \
      ::ttt::fail(code, "{}: {} ({})", path, ::ttt::data::hdf5_error(), #call); \
    }                                                                           \
    return hdf5_result;                                                         \
  }()
