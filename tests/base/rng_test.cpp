#include "core/base/rng.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <set>

namespace ttt {
namespace {

using Block = std::array<std::uint32_t, 4>;

// Known-answer vectors that Random123 ships for philox4x32-10.
TEST(Philox, MatchesTheKnownAnswers) {
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(philox({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(CounterRng, IsAFunctionOfSeedNameAndIndex) {
  const CounterRng rng(1, "w");
  EXPECT_EQ(rng.bits(5), CounterRng(1, "w").bits(5));
  const std::set<std::uint64_t> values{rng.bits(5),
                                       rng.bits(6),
                                       rng.bits(5 + (std::uint64_t{1} << 32U)),
                                       CounterRng(2, "w").bits(5),
                                       CounterRng(1 + (std::uint64_t{1} << 32U), "w").bits(5),
                                       CounterRng(1, "v").bits(5),
                                       CounterRng(1, "").bits(5)};
  EXPECT_EQ(values.size(), 7U);
}

struct Moments {
  double mean = 0, variance = 0, kurtosis = 0, largest = 0, smallest = 0;
};

template <typename Draw>
Moments moments_of(Draw&& draw) {
  constexpr std::uint64_t kCount = 200000;
  Moments m;
  double square = 0, fourth = 0;
  for (std::uint64_t i = 0; i < kCount; ++i) {
    const double x = draw(i);
    m.mean += x / kCount;
    square += x * x / kCount;
    fourth += x * x * x * x / kCount;
    m.largest = std::max(m.largest, x);
    m.smallest = std::min(m.smallest, x);
  }
  m.variance = square - m.mean * m.mean;
  m.kurtosis = fourth / (square * square);
  return m;
}

// Tolerances are about four standard errors of 200000 draws.
TEST(CounterRng, UniformHasItsMoments) {
  const CounterRng rng(3, "uniform");
  const Moments m = moments_of([&](std::uint64_t i) { return rng.uniform(i); });
  EXPECT_NEAR(m.mean, 0.5, 0.003);
  EXPECT_NEAR(m.variance, 1.0 / 12, 0.001);
  EXPECT_GE(m.smallest, 0.0);
  EXPECT_LT(m.largest, 1.0);
}

TEST(CounterRng, NormalHasItsMoments) {
  const CounterRng rng(3, "normal");
  const Moments m = moments_of([&](std::uint64_t i) { return rng.normal(i); });
  EXPECT_NEAR(m.mean, 0.0, 0.01);
  EXPECT_NEAR(m.variance, 1.0, 0.013);
  EXPECT_NEAR(m.kurtosis, 3.0, 0.05);
  EXPECT_GT(m.largest, 3.5);
  EXPECT_LT(m.smallest, -3.5);
}

TEST(CounterRng, TruncatedNormalHasUnitVarianceAndBounds) {
  const CounterRng rng(3, "truncated");
  const Moments m = moments_of([&](std::uint64_t i) { return rng.truncated_normal(i); });
  // The cut at 2 in units of its own deviation.
  constexpr double kBound = 2 / 0.87962566103423978;
  EXPECT_NEAR(m.mean, 0.0, 0.01);
  EXPECT_NEAR(m.variance, 1.0, 0.013);
  EXPECT_LE(m.largest, kBound);
  EXPECT_GE(m.smallest, -kBound);
  EXPECT_GT(m.largest, 0.99 * kBound);
  EXPECT_LT(m.smallest, -0.99 * kBound);
}

}  // namespace
}  // namespace ttt
