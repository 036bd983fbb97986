#include "core/base/error.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ttt {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Fail, CarriesTheCodeAndTheFormattedMessage) {
  try {
    fail(ExitCode::kResumeMismatch, "step {} of {}", 3, "run");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kResumeMismatch);
    EXPECT_STREQ(error.what(), "step 3 of run");
  }
}

TEST(Check, SaysWhatWasExpectedAndWhere) {
  try {
    TTT_CHECK(1 + 1 == 3, "sum of {}", 2);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kInternal);
    EXPECT_THAT(error.what(), HasSubstr("sum of 2 (check `1 + 1 == 3` failed at "));
    // From the repository root, wherever it was built.
    EXPECT_THAT(error.what(), HasSubstr(" tests/base/error_test.cpp:"));
    EXPECT_THAT(error.what(), Not(HasSubstr("/tests/base/error_test.cpp")));
  }
}

TEST(Check, FormatsOnlyWhenItFails) {
  int calls = 0;
  const auto count = [&] { return ++calls; };
  TTT_CHECK(true, "{}", count());
  EXPECT_EQ(calls, 0);
}

// Users' scripts read these; docs/reliability.md lists them.
TEST(ExitCodes, KeepTheirNumbers) {
  EXPECT_EQ(static_cast<int>(ExitCode::kOk), 0);
  EXPECT_EQ(static_cast<int>(ExitCode::kUsage), 64);
  EXPECT_EQ(static_cast<int>(ExitCode::kCorruptInput), 65);
  EXPECT_EQ(static_cast<int>(ExitCode::kMissingInput), 66);
  EXPECT_EQ(static_cast<int>(ExitCode::kInternal), 70);
  EXPECT_EQ(static_cast<int>(ExitCode::kLocked), 73);
  EXPECT_EQ(static_cast<int>(ExitCode::kIo), 74);
  EXPECT_EQ(static_cast<int>(ExitCode::kPeerLost), 75);
  EXPECT_EQ(static_cast<int>(ExitCode::kPermission), 77);
  EXPECT_EQ(static_cast<int>(ExitCode::kResumeMismatch), 78);
  EXPECT_EQ(static_cast<int>(ExitCode::kStoppedEarly), 80);
  EXPECT_EQ(static_cast<int>(ExitCode::kNumerical), 81);
  EXPECT_EQ(static_cast<int>(ExitCode::kReplicasDiffer), 82);
  EXPECT_EQ(static_cast<int>(ExitCode::kOutOfMemory), 83);
}

}  // namespace
}  // namespace ttt
