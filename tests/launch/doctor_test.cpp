#include "launch/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "launch/agreement.h"

namespace ttt::launch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

RankPlace place(const std::string& host, std::vector<int> cpus, int threads,
                const std::string& device = "") {
  return {host, std::move(cpus), threads, device};
}

TEST(Placement, RangesAreShort) {
  EXPECT_EQ(format_ranges({}), "");
  EXPECT_EQ(format_ranges(std::vector{7}), "7");
  EXPECT_EQ(format_ranges(std::vector{0, 1, 2, 4, 6, 7}), "0-2,4,6-7");
}

TEST(Placement, ALineAHost) {
  const std::vector<RankPlace> places = {place("b", {0, 1}, 2), place("a", {0}, 1),
                                         place("b", {2, 3}, 2), place("a", {1}, 1, "0000:01")};
  EXPECT_THAT(host_lines(places),
              ElementsAre("host=a ranks=1,3 cpus=0|1 threads=1 device=cpu|0000:01",
                          "host=b ranks=0,2 cpus=0-1|2-3 threads=2 device=cpu"));
}

TEST(Placement, RanksOfTheirOwnProcessorsAndUnboundOnesThatShareAreFine) {
  EXPECT_THAT(placement_warnings(std::vector{place("a", {0, 1}, 2), place("a", {2, 3}, 2)}),
              IsEmpty());
  EXPECT_THAT(placement_warnings(std::vector{place("a", {0, 1}, 1), place("a", {0, 1}, 1)}),
              IsEmpty());
  EXPECT_THAT(placement_warnings(std::vector{place("a", {0}, 1), place("b", {0}, 1)}), IsEmpty());
}

TEST(Placement, MoreThreadsThanProcessors) {
  EXPECT_THAT(placement_warnings(std::vector{place("a", {3}, 8)}),
              ElementsAre(AllOf(HasSubstr("host a: rank 0 runs 8 threads on 1 processor (3)"),
                                HasSubstr("train.num_threads"))));
}

TEST(Placement, RanksThatShareProcessors) {
  // 0 and 1 are on the same core; 2 has room.
  EXPECT_THAT(placement_warnings(
                  std::vector{place("a", {0}, 1), place("a", {0}, 1), place("a", {0, 1, 2, 3}, 2)}),
              ElementsAre(HasSubstr("ranks 0-1 run 2 threads on 1 processor (0)")));
  EXPECT_THAT(placement_warnings(std::vector{place("a", {0, 1}, 2), place("a", {0, 1}, 2)}),
              ElementsAre(HasSubstr("ranks 0-1 run 4 threads on 2 processors (0-1)")));
}

TEST(Placement, OneDeviceForTwoRanksIsRefused) {
  EXPECT_NO_THROW(refuse_shared_devices(std::vector{
      place("a", {0}, 1, "01"), place("b", {0}, 1, "01"), place("a", {0}, 1), place("a", {0}, 1)}));
  try {
    refuse_shared_devices(
        std::vector{place("a", {0}, 1, "01"), place("a", {0}, 1, "02"), place("a", {0}, 1, "01")});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("ranks 0 and 2 of host a"), HasSubstr("--share-devices")));
  }
}

RankFacts healthy(const std::string& host) {
  RankFacts facts;
  facts.place = place(host, {0, 1}, 2);
  facts.num_processors = 2;
  facts.memory_gib = 64;
  facts.free_memory_gib = 60;
  facts.link = {2e-6, 10};
  facts.free_disk_gib = 100;
  facts.fsync_seconds = 1e-3;
  return facts;
}

TEST(Doctor, AHealthyClusterHasNoTroubles) {
  const std::vector<RankFacts> ranks = {healthy("a"), healthy("b"), healthy("c"), healthy("d")};
  EXPECT_THAT(find_troubles(ranks, std::vector<CollectiveTime>{{"all_reduce_sum", 4, 1e-5, 0}}),
              IsEmpty());
}

TEST(Doctor, EveryTroubleIsNamedWithItsHost) {
  const auto troubles_of = [](const std::function<void(RankFacts&)>& change) {
    std::vector<RankFacts> ranks = {healthy("a"), healthy("b"), healthy("c"), healthy("d")};
    change(ranks[2]);
    return find_troubles(ranks, {});
  };
  const auto one = [](const char* words) {
    return ElementsAre(AllOf(HasSubstr("host c: "), HasSubstr(words)));
  };
  EXPECT_THAT(troubles_of([](RankFacts& r) { r.place.num_threads = 4; }), one("4 threads on 2"));
  EXPECT_THAT(troubles_of([](RankFacts& r) { r.free_memory_gib = 5; }), one("5.0 of 64.0 GiB"));
  EXPECT_THAT(troubles_of([](RankFacts& r) { r.free_disk_gib = 0.5; }), one("0.50 GiB are free"));
  EXPECT_THAT(troubles_of([](RankFacts& r) { r.disk_problem = "cannot write"; }),
              one("cannot write"));
  EXPECT_THAT(troubles_of([](RankFacts& r) { r.fsync_seconds = 0.3; }), one("300 ms"));
  EXPECT_THAT(troubles_of([](RankFacts& r) { r.clock_ahead_seconds = -3; }), one("-3.0 s"));
  EXPECT_THAT(troubles_of([](RankFacts& r) { r.link.gigabytes_per_second = 4; }), one("4.00 GB/s"));
  EXPECT_THAT(troubles_of([](RankFacts& r) {
                r.memory_gib = 100;
                r.free_memory_gib = 90;
              }),
              one("GiB of memory 100, others 64"));
  EXPECT_THAT(troubles_of([](RankFacts& r) { r.num_processors = 3; }),
              one("processors 3, others 2"));
  std::vector<RankFacts> bound = {healthy("a")};
  bound[0].num_processors = 64;
  EXPECT_THAT(find_troubles(bound, {}), ElementsAre(HasSubstr("2 of 64 processors")));
  EXPECT_THAT(find_troubles(std::vector{healthy("a"), healthy("a")}, {}),
              ElementsAre(HasSubstr("ranks 0-1 run 4 threads on 2 processors")));
  EXPECT_THAT(find_troubles(std::vector{healthy("a")},
                            std::vector<CollectiveTime>{{"all_reduce_sum", 4, 21e-3, 0}}),
              ElementsAre(HasSubstr("21.0 ms for a sum of one number")));
}

TEST(Doctor, FactsTravelAsJson) {
  RankFacts facts = healthy("a");
  facts.disk_problem = "none";
  facts.disk_code = 74;
  facts.clock_ahead_seconds = 0.25;
  facts.program = "p";
  facts.kernel = "k";
  facts.place.device = "d";
  facts.write_gigabytes_per_second = 3;
  const nlohmann::json json = facts;
  EXPECT_EQ(nlohmann::json(json.get<RankFacts>()), json);
  // Every field has a value of its own, so that none can be left out or read from another's place.
  std::set<std::string> values;
  for (const auto& [key, value] : json.items()) values.insert(value.dump());
  EXPECT_EQ(values.size() + 1, json.size()) << json;  // threads and processors are both 2
}

TEST(Agreement, OneRankAgreesWithItselfAndItsErrorIsKept) {
  const auto alone = dist::make_single_communicator();
  EXPECT_NO_THROW(expect_same(*alone, "x", "y", "z"));
  EXPECT_NO_THROW(run_together(*alone, [] {}));
  try {
    run_together(*alone, [] { fail(ExitCode::kMissingInput, "no such file"); });
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kMissingInput);
    EXPECT_STREQ(error.what(), "no such file");
  }
}

}  // namespace
}  // namespace ttt::launch
