// The rules of launch/guard.h, launch/straggler.h and launch/replica_check.h on numbers made for them.

#include "launch/guard.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/base/rng.h"
#include "launch/replica_check.h"
#include "launch/straggler.h"
#include "tests/support/tensors.h"

namespace ttt::launch {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
using Verdict = Guard::Verdict;

config::GuardConfig config_of(config::GuardConfig::SpikePolicy policy, std::int64_t window = 4) {
  config::GuardConfig config;
  config.set_spike_policy(policy);
  config.set_spike_window(window);
  return config;
}

// Steps [first, last] with norms 1, 2, 3, ... and losses ten times as large.
void observe(Guard& guard, std::int64_t first, std::int64_t last) {
  for (std::int64_t step = first; step <= last; ++step) {
    const auto norm = static_cast<double>(step);
    EXPECT_EQ(guard.observe(step, 10 * norm, norm, true), Verdict::kUpdated);
  }
}

TEST(SpikeLimit, IsTheMedianAndItsSpread) {
  // Median 3, distances 2 1 0 1 97, of which the median is 1.
  EXPECT_DOUBLE_EQ(spike_limit(std::vector<double>{4, 1, 100, 3, 2}, 10), 3 + 14.826);
  EXPECT_DOUBLE_EQ(spike_limit(std::vector<double>{2, 2, 2}, 10), 3);  // no spread: a twentieth
  EXPECT_DOUBLE_EQ(spike_limit(std::vector<double>{-2, -2, -2}, 10), -1);
}

TEST(Guard, JudgesNothingBeforeTheWindowIsFullOrWithoutPolicy) {
  Guard guard(config_of(config::GuardConfig::SKIP));
  observe(guard, 1, 3);
  EXPECT_EQ(guard.limits(5).norm, kInfinity);
  observe(guard, 4, 4);
  EXPECT_EQ(guard.limits(5).norm, kInfinity);  // step 4 does not count yet
  EXPECT_DOUBLE_EQ(guard.limits(6).norm, 2 + 14.826);
  EXPECT_DOUBLE_EQ(guard.limits(6).loss, 20 + 148.26);
  Guard without(config_of(config::GuardConfig::NONE));
  observe(without, 1, 20);
  EXPECT_EQ(without.limits(21).norm, kInfinity);
  EXPECT_EQ(without.limits(21).loss, kInfinity);
}

// A device is given a step before the one before it was read.
TEST(Guard, LimitsDoNotDependOnTheStepBefore) {
  for (const auto& [loss, norm, is_updated] :
       {std::tuple{60.0, 6.0, true}, {60.0, 1e9, false}, {kNan, kNan, false}}) {
    Guard late(config_of(config::GuardConfig::SKIP));
    observe(late, 1, 5);
    Guard early = late;
    early.observe(6, loss, norm, is_updated);
    EXPECT_EQ(late.limits(7).norm, early.limits(7).norm);
    EXPECT_EQ(late.limits(7).loss, early.limits(7).loss);
  }
}

TEST(Guard, SkippedStepsAreCountedAndStayOutOfTheWindow) {
  config::GuardConfig config = config_of(config::GuardConfig::SKIP);
  config.set_max_consecutive_skips(2);
  Guard guard(config);
  observe(guard, 1, 5);
  EXPECT_EQ(guard.observe(6, kNan, kInfinity, false), Verdict::kNotFinite);
  EXPECT_EQ(guard.observe(7, 70, 1e9, false), Verdict::kSpike);
  EXPECT_FALSE(guard.is_exhausted());
  EXPECT_EQ(guard.observe(8, kNan, 8, false), Verdict::kNotFinite);
  EXPECT_TRUE(guard.is_exhausted());
  EXPECT_DOUBLE_EQ(guard.limits(9).norm, 3 + 14.826);  // of 2 3 4 5
  EXPECT_EQ(guard.observe(9, 90, 9, true), Verdict::kUpdated);
  EXPECT_FALSE(guard.is_exhausted());
  EXPECT_EQ(guard.state().skipped_steps(), 3);
  EXPECT_EQ(guard.state().consecutive_skips(), 0);
  EXPECT_EQ(guard.state().window_size(), 5);  // and one more than the window
}

TEST(Guard, WithoutSkipsTheFirstIsTooMuch) {
  config::GuardConfig config;
  config.set_max_consecutive_skips(0);
  Guard guard(config);
  EXPECT_FALSE(guard.is_exhausted());
  guard.observe(1, kNan, 1, false);
  EXPECT_TRUE(guard.is_exhausted());
}

TEST(Guard, ARestoredOneDecidesAlike) {
  Guard whole(config_of(config::GuardConfig::SKIP));
  for (std::int64_t step = 1; step <= 30; ++step) {
    const double norm = 2 + std::sin(static_cast<double>(step));
    Guard resumed(config_of(config::GuardConfig::SKIP));
    expect_valid(whole.state(), step - 1, "here");
    resumed.restore(whole.state());
    EXPECT_EQ(resumed.limits(step).norm, whole.limits(step).norm) << step;
    EXPECT_EQ(resumed.limits(step + 1).loss, whole.limits(step + 1).loss) << step;
    whole.observe(step, 3 * norm, step % 7 == 0 ? kNan : norm, step % 7 != 0);
  }
  EXPECT_EQ(whole.state().skipped_steps(), 4);
}

// Back to step 4 twice, before another checkpoint: what was passed over adds up.
TEST(Guard, RollbacksCountFromTheSpikes) {
  config::GuardConfig config = config_of(config::GuardConfig::ROLLBACK);
  config.set_max_rollbacks(2);
  Guard guard(config);
  observe(guard, 1, 4);
  const config::GuardState saved = guard.state();
  for (const std::int64_t spike : {7, 6}) {
    observe(guard, 5, spike - 1);
    EXPECT_TRUE(guard.may_roll_back());
    EXPECT_EQ(guard.observe(spike, 1e9, 1, false), Verdict::kSpike);
    guard.roll_back(spike, saved, 4);
    EXPECT_EQ(guard.state().window_size(), 4);
    EXPECT_EQ(guard.state().skipped_steps(), 0);
  }
  EXPECT_FALSE(guard.may_roll_back());
  EXPECT_EQ(guard.state().rollbacks(), 2);
  EXPECT_EQ(guard.state().passed_over_steps(), 3 + 2);
  EXPECT_EQ(guard.observe(5, kNan, 1, false), Verdict::kNotFinite);  // is skipped under any policy
  EXPECT_EQ(guard.state().skipped_steps(), 1);
}

TEST(Guard, RefusesStatesThatNoneCanHaveHad) {
  Guard guard(config_of(config::GuardConfig::SKIP));
  observe(guard, 1, 6);
  guard.observe(7, kNan, 1, false);
  expect_valid(guard.state(), 7, "here");
  const auto expect_refused = [&](const char* words, auto&& damage) {
    config::GuardState state = guard.state();
    damage(state);
    ExitCode code = ExitCode::kOk;
    const std::string error = test::error_of([&] { expect_valid(state, 7, "there"); }, &code);
    EXPECT_EQ(code, ExitCode::kCorruptInput);
    EXPECT_EQ(error, fmt::format("there: the guard's state has {}", words));
  };
  using State = config::GuardState;
  expect_refused("a negative count", [](State& s) { s.set_rollbacks(-1); });
  expect_refused("a negative count", [](State& s) { s.set_passed_over_steps(-1); });
  expect_refused("more skipped steps than steps", [](State& s) { s.set_skipped_steps(8); });
  expect_refused("more skipped steps than steps", [](State& s) { s.set_consecutive_skips(2); });
  for (const double bad : {kNan, kInfinity, -kInfinity}) {
    expect_refused("numbers in its window that are not finite",
                   [&](State& s) { s.mutable_window(2)->set_loss(bad); });
    expect_refused("numbers in its window that are not finite",
                   [&](State& s) { s.mutable_window(0)->set_grad_norm(bad); });
  }
  expect_refused("a window out of order", [](State& s) { s.mutable_window(1)->set_step(2); });
  expect_refused("a window out of order", [](State& s) { s.mutable_window(4)->set_step(8); });
}

// A step's time: as noisy as on a shared machine, now and then several times as long.
double noisy_seconds(const CounterRng& rng, std::uint64_t index) {
  const double outlier = rng.uniform(2 * index) < 0.05 ? 3 : 1;
  return outlier * (0.85 + 0.3 * rng.uniform(2 * index + 1));
}

TEST(Straggler, IsNamedOnceWithinTwentySteps) {
  for (const int ranks : {2, 3, 4, 64}) {
    for (const int slow : {0, ranks - 1}) {
      StragglerReport report(ranks, 0.75);
      const CounterRng rng(static_cast<std::uint64_t>(ranks), "straggler");
      int named_at = 0;
      for (int step = 1; step <= 200; ++step) {
        std::vector<double> seconds;
        for (int rank = 0; rank < ranks; ++rank) {
          const auto index = static_cast<std::uint64_t>(step * ranks + rank);
          seconds.push_back(noisy_seconds(rng, index) * (rank == slow ? 1.6 : 1));
        }
        for (const auto& straggler : report.add(seconds)) {
          EXPECT_EQ(straggler.rank, slow);
          EXPECT_LT(straggler.score, 0.75);
          EXPECT_EQ(named_at, 0);
          named_at = step;
        }
      }
      EXPECT_GE(named_at, 1) << ranks;
      EXPECT_LE(named_at, 20) << ranks;
    }
  }
}

TEST(Straggler, NoneAmongThousandHealthySteps) {
  for (const int ranks : {2, 4, 64}) {
    StragglerReport report(ranks, 0.75);
    const CounterRng rng(5, "healthy");
    for (int step = 0; step < 1000; ++step) {
      std::vector<double> seconds;
      for (int rank = 0; rank < ranks; ++rank) {
        seconds.push_back(noisy_seconds(rng, static_cast<std::uint64_t>(step * ranks + rank)));
      }
      ASSERT_TRUE(report.add(seconds).empty()) << step;
    }
  }
}

TEST(Straggler, IsNamedAgainAfterItHasRecovered) {
  StragglerReport report(4, 0.75);
  std::vector<int> named;
  for (int step = 1; step <= 120; ++step) {
    const bool is_slow = step <= 40 || step > 80;
    for (const auto& straggler : report.add(std::vector<double>{1, is_slow ? 2.0 : 1.0, 1, 1})) {
      EXPECT_EQ(straggler.rank, 1);
      EXPECT_EQ(straggler.score, 0.5);
      named.push_back(step);
    }
  }
  EXPECT_EQ(named, (std::vector<int>{16, 93}));
  StragglerReport without(2, 0);
  for (int step = 0; step < 50; ++step) {
    EXPECT_TRUE(without.add(std::vector<double>{1, 100}).empty());
  }
}

TEST(Straggler, TimesThatWereNotMeasuredNameNobody) {
  StragglerReport report(2, 0.75);
  for (int step = 0; step < 50; ++step) {
    EXPECT_TRUE(report.add(std::vector<double>{0, 0}).empty());
  }
}

TEST(Replicas, TheMinorityIsOdd) {
  using Ranks = std::vector<std::size_t>;
  const auto odd = [](const std::vector<std::string>& digests) { return odd_ranks(digests); };
  EXPECT_EQ(odd({"a", "a", "a"}), Ranks{});
  EXPECT_EQ(odd({"a", "a", "b", "a"}), Ranks{2});
  EXPECT_EQ(odd({"b", "a", "a"}), Ranks{0});
  EXPECT_EQ(odd({"a", "b"}), (Ranks{0, 1}));  // nobody knows which
  EXPECT_EQ(odd({"a", "a", "b", "b"}), (Ranks{0, 1, 2, 3}));
  EXPECT_EQ(odd({"a", "a", "a", "b", "c"}), (Ranks{3, 4}));
}

}  // namespace
}  // namespace ttt::launch
