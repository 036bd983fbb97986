#include "launch/evaluation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace ttt::launch {
namespace {

using Row = std::vector<double>;

PositionLosses losses_of(const std::vector<Row>& nll, const std::vector<Row>& mask) {
  PositionLosses losses;
  for (std::size_t row = 0; row < nll.size(); ++row) losses.add(nll[row], mask[row]);
  return losses;
}

TEST(PositionLosses, AreSumsByPosition) {
  const PositionLosses losses = losses_of({{1, 2, 3}, {5, 6, 7}}, {{1, 1, 1}, {1, 0, 1}});
  EXPECT_EQ(losses.nll_sum, (Row{6, 2, 10}));
  EXPECT_EQ(losses.count, (Row{2, 1, 2}));
  EXPECT_EQ(losses.num_windows, 2);
}

TEST(PositionLosses, LossIsTheMeanOverWindowsOfTheirMeans) {
  // 2 and 6; the mean over all five tokens would be 3.6.
  EXPECT_DOUBLE_EQ(losses_of({{1, 2, 3}, {5, 6, 7}}, {{1, 1, 1}, {1, 0, 1}}).loss(), 4);
}

TEST(PositionLosses, WithoutAMaskLossIsTheMeanOverPositions) {
  const PositionLosses losses = losses_of({{1, 2}, {3, 10}, {5, 6}}, {{1, 1}, {1, 1}, {1, 1}});
  EXPECT_DOUBLE_EQ(losses.loss(), (losses.mean(0, 1) + losses.mean(1, 2)) / 2);
  EXPECT_DOUBLE_EQ(losses.loss(), losses.mean(0, 2));
}

TEST(PositionLosses, MeanOfARangeWeighsTokens) {
  const PositionLosses losses = losses_of({{1, 2, 3}, {5, 6, 7}}, {{1, 1, 1}, {1, 0, 1}});
  EXPECT_DOUBLE_EQ(losses.mean(0, 1), 3);
  EXPECT_DOUBLE_EQ(losses.mean(1, 3), 4);
  EXPECT_DOUBLE_EQ(losses.mean(0, 3), 3.6);
}

TEST(PositionLosses, MeanWithoutATokenIsNotANumber) {
  const PositionLosses losses = losses_of({{1, 2}}, {{1, 0}});
  EXPECT_TRUE(std::isnan(losses.mean(1, 2)));
  EXPECT_TRUE(std::isnan(losses.mean(0, 0)));
}

TEST(PositionLosses, AMaskedLossDoesNotMatterWhateverItIs) {
  const PositionLosses losses = losses_of({{2, std::nan("")}}, {{1, 0}});
  EXPECT_EQ(losses.loss(), 2);
  EXPECT_EQ(losses.nll_sum[1], 0);
}

TEST(PositionLosses, AWindowThatIsAllMaskedCountsAsZero) {
  EXPECT_EQ(losses_of({{3, 3}, {4, 4}}, {{0, 0}, {1, 1}}).loss(), 2);
}

TEST(PositionLosses, WithoutWindowsAreZero) { EXPECT_EQ(PositionLosses().loss(), 0); }

TEST(InnerLosses, MeanIsOverWindows) {
  InnerLosses losses;
  losses.num_layers = 2;
  losses.length = 2;
  losses.num_windows = 4;
  losses.sums = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};  // [3, layers, T]
  EXPECT_DOUBLE_EQ(losses.mean(0, 0, 1), 0.25);
  EXPECT_DOUBLE_EQ(losses.mean(1, 1, 0), 1.5);
  EXPECT_DOUBLE_EQ(losses.mean(2, 1, 1), 2.75);
}

}  // namespace
}  // namespace ttt::launch
