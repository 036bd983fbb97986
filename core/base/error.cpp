#include "core/base/error.h"

#include <string_view>

namespace ttt {

void check_failed(const char* condition, const char* file, int line, const std::string& message) {
  std::string_view path(file);
  // The path from the repository root is enough, and does not depend on where it was built.
  for (const char* root : {"core/", "kernels/", "data/", "dist/", "launch/", "tests/"}) {
    const auto at = path.rfind(std::string("/") + root);
    if (at != std::string_view::npos) {
      path.remove_prefix(at + 1);
      break;
    }
  }
  throw Error(ExitCode::kInternal,
              fmt::format("{} (check `{}` failed at {}:{})", message, condition, path, line));
}

}  // namespace ttt
