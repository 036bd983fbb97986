// The published schedules at the steps where they bend.

#include "core/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace ttt {
namespace {

config::OptimizerConfig published_125m() {
  config::OptimizerConfig config;  // the defaults: 3e-3 to 1e-5, 480 steps of warm-up
  config.set_decay_steps(4800);
  return config;
}

TEST(LearningRate, FollowsWarmUpAndCosine) {
  const config::OptimizerConfig config = published_125m();
  const auto rate = [&](std::int64_t step) { return learning_rate(config, 1, step); };
  EXPECT_EQ(rate(0), 0.0);
  EXPECT_DOUBLE_EQ(rate(1), 3e-3 / 480);
  EXPECT_DOUBLE_EQ(rate(240), 1.5e-3);
  EXPECT_DOUBLE_EQ(rate(479), 3e-3 * 479 / 480);
  EXPECT_EQ(rate(480), 3e-3);
  const std::int64_t middle = 480 + 4320 / 2;
  EXPECT_DOUBLE_EQ(rate(middle), (3e-3 + 1e-5) / 2);
  EXPECT_DOUBLE_EQ(rate(480 + 4320 / 3), 1e-5 + (3e-3 - 1e-5) * 0.75);  // cos(pi / 3) = 1/2
  EXPECT_GT(rate(4799), 1e-5);
  EXPECT_DOUBLE_EQ(rate(4800), 1e-5);
  EXPECT_DOUBLE_EQ(rate(1000000), 1e-5);
}

TEST(LearningRate, FallsAfterThePeak) {
  const config::OptimizerConfig config = published_125m();
  for (std::int64_t step = 481; step <= 4800; ++step) {
    EXPECT_LT(learning_rate(config, 1, step), learning_rate(config, 1, step - 1)) << step;
  }
}

TEST(LearningRate, DecaysOverTheStepsOfTheRunUnlessToldOtherwise) {
  config::OptimizerConfig config = published_125m();
  config.set_decay_steps(0);
  EXPECT_DOUBLE_EQ(learning_rate(config, 1000, 1000), 1e-5);
  EXPECT_DOUBLE_EQ(learning_rate(config, 1000, 740), (3e-3 + 1e-5) / 2);
}

TEST(LearningRate, NeedsNoWarmUpAndNoDecay) {
  config::OptimizerConfig config = published_125m();
  config.set_warmup_steps(0);
  EXPECT_EQ(learning_rate(config, 1, 0), 3e-3);
  config.set_warmup_steps(4800);
  EXPECT_DOUBLE_EQ(learning_rate(config, 1, 4799), 3e-3 * 4799 / 4800);
  EXPECT_EQ(learning_rate(config, 1, 4800), 1e-5);
}

// The published multiplier is (0.01 + min(1, s / w) 0.09) / 0.1 in bfloat16, which has 8 bits: 0.1 is 204.8 / 2048,
// 0.325 is 166.4 / 512, 0.55 is 140.8 / 256, each rounded to the nearest.
TEST(InnerRateMultiplier, IsThePublishedOneInBfloat16) {
  config::OptimizerConfig config;
  config.set_inner_warmup_init(0.1);
  config.set_inner_warmup_steps(480);
  EXPECT_EQ(inner_lr_multiplier(config, 0), 205.0 / 2048);
  EXPECT_EQ(inner_lr_multiplier(config, 120), 166.0 / 512);
  EXPECT_EQ(inner_lr_multiplier(config, 240), 141.0 / 256);
  EXPECT_EQ(inner_lr_multiplier(config, 479), 1.0);  // 0.998 is nearer to 1 than to 255 / 256
  EXPECT_EQ(inner_lr_multiplier(config, 480), 1.0);
  EXPECT_EQ(inner_lr_multiplier(config, 100000), 1.0);
}

TEST(InnerRateMultiplier, IsOneWithoutWarmUp) {
  EXPECT_EQ(inner_lr_multiplier(config::OptimizerConfig(), 0), 1.0);
}

}  // namespace
}  // namespace ttt
