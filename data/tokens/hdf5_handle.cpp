#include "data/tokens/hdf5_handle.h"

#include "data/files.h"

namespace ttt::data {

std::string hdf5_version() {
  unsigned major = 0;
  unsigned minor = 0;
  unsigned release = 0;
  TTT_HDF5(H5get_libversion(&major, &minor, &release), ExitCode::kInternal, "the library");
  return fmt::format("{}.{}.{}", major, minor, release);
}

QuietHdf5::QuietHdf5() {
  H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

QuietHdf5::~QuietHdf5() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }

std::string hdf5_error() {
  std::string reason;
  const auto take_first = [](unsigned, const H5E_error2_t* entry, void* out) -> herr_t {
    if (entry->desc != nullptr) *static_cast<std::string*>(out) = entry->desc;
    return 1;  // the first of an upward walk is the innermost
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &reason);
  return reason.empty() ? "HDF5 failed" : reason;
}

}  // namespace ttt::data
