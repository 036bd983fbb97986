// Ends in the ways a program can end; tests/CMakeLists.txt checks the launcher's exit code.

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

#include "dist/gradient_sum.h"
#include "dist/launch_environment.h"

namespace {

using ttt::FlatRange;

/// Rank 1 is wrong while a bucket is on its way; what the thread meets must end the job as if it had been met in step.
void fail_in_a_bucket(const std::string& way, ttt::dist::Runtime& runtime) {
  const bool is_wrong = runtime.world().rank() == 1;
  try {
    const std::int64_t size = way == "bucket-size" && is_wrong ? 400'000 : 40'000;
    ttt::dist::GradientSum sum({FlatRange{0, size}}, ttt::DType::kF32, {}, {&runtime.world()});
    ttt::Stream stream;
    sum.slot(stream);
    sum.expect_final();
    if (is_wrong) sum.after_gradients(0, stream);
    if (way == "bucket-left" && is_wrong) {
      ttt::fail(ttt::ExitCode::kNumerical, "rank 1 leaves with a bucket on its way");
    }
    if (way == "bucket-left") std::this_thread::sleep_for(std::chrono::minutes(1));
    sum.finish(stream);
  } catch (const ttt::Error& error) {
    std::fprintf(stderr, "rank %d: %s\n", runtime.world().rank(), error.what());
    runtime.abort(error.code());
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string way = argc > 1 ? argv[1] : "return";
  try {
    ttt::dist::Runtime runtime;
    if (way.starts_with("bucket")) fail_in_a_bucket(way, runtime);
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
