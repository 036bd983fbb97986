#pragma once
// Names of files in files that may be anyone's.

#include <climits>
#include <string_view>

namespace ttt::data {

/// Whether this can be a file beside the one that names it: no path, nothing hidden, nothing that no file system takes.
inline bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name.size() <= NAME_MAX && !name.starts_with('.') &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

}  // namespace ttt::data
