#include "data/tokens/hdf5_handle.h"

#include "data/files.h"

namespace ttt::data {

std::string hdf5_version() {
  prepare_hdf5_library();
  unsigned major = 0;
  unsigned minor = 0;
  unsigned release = 0;
  TTT_HDF5(H5get_libversion(&major, &minor, &release), ExitCode::kInternal, "the library");
  return fmt::format("{}.{}.{}", major, minor, release);
}

}  // namespace ttt::data
