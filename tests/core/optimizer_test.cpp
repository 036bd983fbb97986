// Clipping by the global norm, and what happens to a gradient that is not finite.

#include "core/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/tensors.h"

namespace ttt {
namespace {

using test::tensor_of;
using test::values_of;

class OptimizerTest : public testing::TestWithParam<DType> {
 protected:
  OptimizerTest() {
    config_.set_warmup_steps(0);
    config_.set_clip_norm(5.0);
  }
  [[nodiscard]] Tensor tensor(const std::vector<double>& values) const {
    return tensor_of(values, {static_cast<std::int64_t>(values.size())}, GetParam());
  }

  // The norm of what was queued.
  double update(Optimizer& optimizer, const Tensor& parameters, const Tensor& gradient,
                std::int64_t step) {
    optimizer.update(parameters, {}, gradient, step, stream_);
    return gradient_norm(*optimizer.squares().data<double>(), step);
  }

  config::OptimizerConfig config_;
  Stream stream_;
};

// After one step m = (1 - beta1) g, with g the clipped gradient.
TEST_P(OptimizerTest, ClipsFromTheLimitOn) {
  const struct {
    std::vector<double> gradient;
    double norm, scale;
  } cases[] = {{{1.5, 2.0}, 2.5, 1.0},   // below: not touched
               {{3.0, 4.0}, 5.0, 1.0},   // at the limit
               {{6.0, 8.0}, 10.0, 0.5},  // above
               {{0.0, 0.0}, 0.0, 1.0}};
  for (const auto& c : cases) {
    const Tensor parameters = tensor({1, 1});
    Optimizer optimizer(config_, 100, 2, GetParam());
    EXPECT_EQ(update(optimizer, parameters, tensor(c.gradient), 0), c.norm);
    for (std::size_t i = 0; i < 2; ++i) {
      EXPECT_NEAR(values_of(optimizer.m())[i], 0.1 * c.scale * c.gradient[i], 1e-7);
      EXPECT_NEAR(values_of(optimizer.v())[i], 0.05 * std::pow(c.scale * c.gradient[i], 2), 1e-6);
    }
  }
}

// Just above the limit the clipped gradient has the limit's norm, so clipping is continuous.
TEST_P(OptimizerTest, ClipsToTheLimit) {
  Optimizer optimizer(config_, 100, 2, GetParam());
  update(optimizer, tensor({1, 1}), tensor({3.03, 4.04}), 0);
  const std::vector<double> m = values_of(optimizer.m());
  EXPECT_NEAR(std::hypot(m[0], m[1]), 0.5, 1e-6);
}

TEST_P(OptimizerTest, ALimitOfZeroIsNone) {
  config_.set_clip_norm(0);
  Optimizer optimizer(config_, 100, 2, GetParam());
  update(optimizer, tensor({1, 1}), tensor({600, 800}), 0);
  EXPECT_NEAR(values_of(optimizer.m())[1], 80.0, 1e-5);
}

TEST_P(OptimizerTest, TheFirstStepOfAWarmUpMovesNothing) {
  config_.set_warmup_steps(10);
  const Tensor parameters = tensor({1, -2});
  Optimizer optimizer(config_, 100, 2, GetParam());
  update(optimizer, parameters, tensor({1, 1}), 0);
  EXPECT_EQ(values_of(parameters), (std::vector<double>{1, -2}));
  update(optimizer, parameters, tensor({1, 1}), 1);
  EXPECT_LT(values_of(parameters)[0], 1);
}

// Two steps by hand: bias correction counts from one, decay is apart from the moments.
TEST_P(OptimizerTest, TwoStepsAreAdamW) {
  config_.set_end_learning_rate(config_.learning_rate());  // constant
  const Tensor parameters = tensor({1});
  Optimizer optimizer(config_, 100, 1, GetParam());
  double p = 1;
  double m = 0;
  double v = 0;
  for (int step = 0; step < 2; ++step) {
    const double g = step == 0 ? 0.5 : -2.0;
    update(optimizer, parameters, tensor({g}), step);
    m = 0.9 * m + 0.1 * g;
    v = 0.95 * v + 0.05 * g * g;
    const double m_hat = m / (1 - std::pow(0.9, step + 1));
    const double v_hat = v / (1 - std::pow(0.95, step + 1));
    p -= 3e-3 * (m_hat / (std::sqrt(v_hat) + 1e-8) + 0.1 * p);
    EXPECT_NEAR(values_of(parameters)[0], p, GetParam() == DType::kF64 ? 1e-15 : 2e-7);
  }
}

TEST_P(OptimizerTest, AGradientThatIsNotFiniteChangesNothing) {
  Optimizer optimizer(config_, 100, 3, GetParam());
  const Tensor parameters = tensor({1, 2, 3});
  update(optimizer, parameters, tensor({0.1, 0.2, 0.3}), 0);
  const std::vector<double> before[] = {values_of(parameters), values_of(optimizer.m()),
                                        values_of(optimizer.v())};
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
        -std::numeric_limits<double>::infinity()}) {
    ExitCode code = ExitCode::kOk;
    const std::string error = test::error_of(
        [&] {
          update(optimizer, parameters, tensor({1, bad, 1}), 7);
        },
        &code);
    EXPECT_EQ(code, ExitCode::kNumerical);
    EXPECT_NE(error.find("at step 7"), std::string::npos) << error;
    EXPECT_EQ(values_of(parameters), before[0]);
    EXPECT_EQ(values_of(optimizer.m()), before[1]);
    EXPECT_EQ(values_of(optimizer.v()), before[2]);
  }
}

// The bias is that of the updates made: a step without one is as if it had never been, but for the learning rate.
TEST_P(OptimizerTest, OnlyUpdatesThatAreMadeCount) {
  config_.set_end_learning_rate(config_.learning_rate());  // constant
  const auto run = [&](bool with_bad_steps, std::int64_t resumed_at) {
    Optimizer optimizer(config_, 100, 2, GetParam());
    const Tensor parameters = tensor({1, -1});
    const Tensor bad = tensor({1, std::numeric_limits<double>::quiet_NaN()});
    for (std::int64_t step = 0; step < 4; ++step) {
      if (with_bad_steps && step != 2) optimizer.update(parameters, {}, bad, step, stream_);
      if (step == resumed_at) optimizer.set_num_updates(step);
      update(optimizer, parameters, tensor({0.5, 0.25 * static_cast<double>(step)}), step);
    }
    return values_of(parameters);
  };
  const std::vector<double> expected = run(false, -1);
  EXPECT_EQ(run(true, -1), expected);
  EXPECT_EQ(run(true, 3), expected);
}

INSTANTIATE_TEST_SUITE_P(DTypes, OptimizerTest, testing::Values(DType::kF32, DType::kF64),
                         [](const auto& test) { return name_of(test.param); });

}  // namespace
}  // namespace ttt
