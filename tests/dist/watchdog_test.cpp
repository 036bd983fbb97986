#include "dist/watchdog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ttt::dist {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::vector<std::string> kHosts = {"a", "a", "b", "b"};

WatchdogOptions options() { return {30, {600, 60, 600, 0}, {}}; }

std::vector<RankReport> all_in(Operation operation, double stuck_seconds) {
  return std::vector<RankReport>(4, {{Phase::kStep, operation, 10, stuck_seconds}, 0});
}

TEST(FindCulprit, NothingIsWrongBelowTheLimits) {
  EXPECT_EQ(find_culprit(all_in(Operation::kBarrier, 59), kHosts, options()), "");
  EXPECT_EQ(find_culprit(all_in(Operation::kNone, 59), kHosts, options()), "");
}

TEST(FindCulprit, TheRankThatWaitsForNobodyIsNamed) {
  auto ranks = all_in(Operation::kAllReduceSum, 61);
  ranks[2].activity = {Phase::kStep, Operation::kNone, 10, 60.5};
  EXPECT_THAT(find_culprit(ranks, kHosts, options()),
              AllOf(HasSubstr("rank 2 (host b)"), HasSubstr("phase step"), HasSubstr("3 of 4")));
}

// An evaluation that one rank makes while the others wait may take longer than any limit.
TEST(FindCulprit, ThereIsNoneWhileTheRankThatOthersWaitForGetsOn) {
  auto ranks = all_in(Operation::kBarrier, 1e4);
  ranks[2].activity = {Phase::kStep, Operation::kNone, 10, 58};
  EXPECT_EQ(find_culprit(ranks, kHosts, options()), "");
}

TEST(FindCulprit, OfTwoOutsideTheLongerStuckIsNamed) {
  auto ranks = all_in(Operation::kBarrier, 61);
  ranks[1].activity = {Phase::kStep, Operation::kNone, 10, 5};
  ranks[3].activity = {Phase::kStep, Operation::kNone, 10, 70};
  EXPECT_THAT(find_culprit(ranks, kHosts, options()), HasSubstr("rank 3 (host b)"));
}

TEST(FindCulprit, WhenAllWaitTheOneBehindIsNamed) {
  auto ranks = all_in(Operation::kRecv, 61);
  ranks[1].activity.num_operations = 9;
  EXPECT_THAT(
      find_culprit(ranks, kHosts, options()),
      AllOf(HasSubstr("every rank waits"), HasSubstr("rank 1 (host a)"), HasSubstr("recv")));
}

TEST(FindCulprit, APhaseWithoutLimitIsNotLimited) {
  auto ranks = all_in(Operation::kBarrier, 1e6);
  for (RankReport& rank : ranks) rank.activity.phase = Phase::kCheckpoint;
  EXPECT_EQ(find_culprit(ranks, kHosts, options()), "");
}

TEST(FindCulprit, SilentRanksComeFirst) {
  auto ranks = all_in(Operation::kBarrier, 61);
  ranks[0].activity.operation = Operation::kNone;
  ranks[2].silent_seconds = 31;
  ranks[3].silent_seconds = 31.5;
  EXPECT_THAT(find_culprit(ranks, kHosts, options()),
              HasSubstr("rank 2 (host b), rank 3 (host b) silent for 31.5 s (limit 30 s)"));
  WatchdogOptions deaf = options();
  deaf.silence_seconds = 0;
  EXPECT_THAT(find_culprit(ranks, kHosts, deaf), HasSubstr("rank 0 (host a) makes no progress"));
}

TEST(FlightRecord, KeepsTheLastOperationsAndTheOldestUnfinished) {
  FlightRecord record;
  for (int i = 0; i < 300; ++i) record.end(record.begin(Operation::kSend, i, 1));
  EXPECT_EQ(record.activity().operation, Operation::kNone);
  const std::int64_t outer = record.begin(Operation::kAllGather, 7, -1);
  record.end(record.begin(Operation::kRecv, 8, 2));
  EXPECT_EQ(record.activity().operation, Operation::kAllGather);
  EXPECT_EQ(record.activity().num_operations, 302);
  EXPECT_THAT(record.text(),
              AllOf(HasSubstr("number=46 operation=send bytes=46 peer=1"),
                    ::testing::Not(HasSubstr("number=45 ")),
                    HasSubstr("operation=all_gather bytes=7 peer=-1"), HasSubstr("waits_since")));
  record.end(outer);
  EXPECT_EQ(record.activity().operation, Operation::kNone);
}

TEST(FlightRecord, APhaseEndsWithItsBlock) {
  FlightRecord record;
  const PhaseScope step(record, Phase::kStep);
  {
    const PhaseScope checkpoint(record, Phase::kCheckpoint);
    EXPECT_EQ(record.activity().phase, Phase::kCheckpoint);
  }
  EXPECT_EQ(record.activity().phase, Phase::kStep);
}

}  // namespace
}  // namespace ttt::dist
