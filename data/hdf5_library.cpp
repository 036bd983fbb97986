#include "data/hdf5_library.h"

#include <hdf5.h>

#include <algorithm>
#include <mutex>
#include <string_view>

namespace ttt::data {

void prepare_hdf5_library() {
  static std::once_flag once;
  std::call_once(once, [] {
    // The exit handler of HDF5 1.10 crashes after a full disk, and prints "infinite loop closing library" where a file that
    // could not be written is still open. It is not installed if this comes before HDF5's first call.
    H5dont_atexit();
    H5open();
    H5PLset_loading_state(0);
  });
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // per thread
}

std::string hdf5_error() {
  std::string reason;
  const auto take_first = [](unsigned, const H5E_error2_t* entry, void* out) -> herr_t {
    if (entry->desc != nullptr) *static_cast<std::string*>(out) = entry->desc;
    return 1;  // the first of an upward walk is the innermost
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &reason);
  // The innermost entry is a whole report: "... errno = 28, error message = 'No space left on device', buf = ...".
  constexpr std::string_view kQuote = "error message = '";
  if (const std::size_t begin = reason.find(kQuote); begin != std::string::npos) {
    reason = reason.substr(begin + kQuote.size());
    reason.resize(std::min(reason.size(), reason.find('\'')));
  }
  return reason.empty() ? "HDF5 failed" : reason;
}

}  // namespace ttt::data
