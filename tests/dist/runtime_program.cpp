// Ends in the ways a program can end; tests/CMakeLists.txt checks the launcher's exit code.

#include <cstdio>
#include <string>

#include "dist/launch_environment.h"

int main(int argc, char** argv) {
  const std::string way = argc > 1 ? argv[1] : "return";
  try {
    ttt::dist::Runtime runtime;
    if (way == "abort" && runtime.world().rank() == runtime.world().size() - 1) {
      runtime.abort(ttt::ExitCode::kNumerical);
    }
    if (way == "throw" && runtime.world().rank() == 0) {
      ttt::fail(ttt::ExitCode::kIo, "not caught inside the runtime's life");
    }
    runtime.world().barrier();
  } catch (const ttt::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
  return 0;
}
