// main() of test programs that run under mpirun: MPI starts once, every rank runs every test, and a
// test fails when any rank fails it. Rank 0 prints; the others print their failures only.

#include <gtest/gtest.h>

#include <iostream>

#include "dist/launch_environment.h"
#include "tests/support/mpi_world.h"

namespace ttt::test {
namespace {

dist::Communicator* the_world = nullptr;

class FailurePrinter final : public testing::EmptyTestEventListener {
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (result.failed()) {
      std::cerr << "[rank " << world().rank() << "] " << result.file_name() << ":"
                << result.line_number() << ": " << result.summary() << std::endl;
    }
  }
};

/// Makes a failure on one rank the failure of all.
class Agreement final : public testing::EmptyTestEventListener {
  void OnTestEnd(const testing::TestInfo& info) override {
    const bool failed_here = info.result()->Failed();
    const auto verdicts = world().gather_strings(failed_here ? "failed" : "passed");
    for (std::size_t rank = 0; rank < verdicts.size(); ++rank) {
      if (verdicts[rank] == "failed" && !failed_here) {
        ADD_FAILURE() << "rank " << rank << " failed this test";
      }
    }
  }
};

int run(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (world().rank() != 0) {
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailurePrinter);
  }
  listeners.Append(new Agreement);
  return RUN_ALL_TESTS();
}

}  // namespace

dist::Communicator& world() { return *the_world; }

}  // namespace ttt::test

int main(int argc, char** argv) {
  ttt::dist::Runtime runtime;
  ttt::test::the_world = &runtime.world();
  return ttt::test::run(argc, argv);
}
