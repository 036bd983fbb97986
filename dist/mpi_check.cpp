#include "dist/mpi_check.h"

#include <mpi.h>

#include <array>
#include <string>
#include <string_view>

#include "core/base/error.h"

namespace ttt::dist {

void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) {
    return;
  }
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  const std::string_view name = std::string_view(call).substr(0, std::string_view(call).find('('));
  int error_class = MPI_SUCCESS;
  MPI_Error_class(code, &error_class);
  if (error_class == MPI_ERR_TRUNCATE) {
    fail(ExitCode::kInternal, "{}: a message is longer than its receiver expects ({})", name,
         text.data());
  }
  fail(ExitCode::kPeerLost, "{} failed: {}", name, text.data());
}

}  // namespace ttt::dist
