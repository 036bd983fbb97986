// The wiring of every model: gradients of the language model, and how they are accumulated. The kernels'
// own gradients are proved by complex step in tests/kernels.

#include <limits>

#include "tests/core/model_cases.h"

namespace ttt {
namespace {

using test::ModelCase;
using test::SmallModel;

// The derivative of loss(values + s direction) at s = 0 by the five-point rule, whose error is O(h^4).
template <typename Loss>
double directional_derivative(std::span<double> values, const std::vector<double>& direction,
                              double h, Loss&& loss) {
  const std::vector<double> start(values.begin(), values.end());
  const auto at = [&](double s) {
    for (std::size_t i = 0; i < start.size(); ++i) values[i] = start[i] + s * direction[i];
    return loss();
  };
  const double derivative = (8.0 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12.0 * h);
  std::copy(start.begin(), start.end(), values.begin());
  return derivative;
}

double norm_of(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

// The derivative at the first step at which it is `expected` to `tolerance`, or else the last. Steps are
// along unit vectors; the rule is off by h^4 / 30 times the fifth derivative plus eps |loss| / h. Most models
// are smooth on a scale of 1e-3. Where they are not (LayerNorm of a row that is almost constant, the jump of
// (elu + 1)'' at zero) a shorter step is right. A wrong gradient is wrong at every step.
template <typename Loss>
void expect_derivative(const std::string& name, std::span<double> values,
                       const std::vector<double>& direction, double expected, double tolerance,
                       Loss&& loss) {
  double derivative = 0;
  double rounding = 0;
  for (const double h : {3e-4, 3e-5, 1e-6}) {
    derivative = directional_derivative(values, direction, h, loss);
    rounding = 10 * std::numeric_limits<double>::epsilon() * std::abs(loss()) / h;
    if (std::abs(derivative - expected) <= tolerance + rounding) break;
  }
  EXPECT_NEAR(derivative, expected, tolerance + rounding) << name;
}

// The tolerance is 1e-7 of what the derivative along a random unit vector typically is, |g| / sqrt(n).
void expect_gradients(const ModelCase& model_case, std::int64_t tokens) {
  SmallModel small(model_case.model, DType::kF64, tokens);
  small.context.inner_lr_multiplier = 0.75;  // as in the warm-up of TTT-MLP
  small.forward_backward();
  const auto loss = [&] { return small.loss(); };
  for (const Parameter& parameter : small.model.parameters().all()) {
    const std::span<const double> grad = parameter.grad.span<double>();
    const std::span<double> values = parameter.value.span<double>();
    std::vector<double> direction =
        test::random_values(parameter.name + ".direction", parameter.shape.numel());
    const double length = norm_of(direction);
    double expected = 0;
    for (std::size_t i = 0; i < direction.size(); ++i) {
      direction[i] /= length;
      expected += grad[i] * direction[i];
    }
    const double typical = norm_of(grad) / std::sqrt(static_cast<double>(grad.size()));
    expect_derivative(parameter.name + " along a random direction", values, direction, expected,
                      1e-7 * typical, loss);
    const std::size_t element = CounterRng(1, parameter.name).bits(0) % values.size();
    std::vector<double> axis(values.size());
    axis[element] = 1;
    expect_derivative(fmt::format("{}[{}]", parameter.name, element), values, axis, grad[element],
                      1e-7 * std::max(typical, std::abs(grad[element])), loss);
    EXPECT_TRUE(tokens == 1 || typical > 1e-6) << parameter.name << " is not tested";
  }
}

class ModelGradient : public testing::TestWithParam<ModelCase> {};

TEST_P(ModelGradient, OfEveryParameterMatchesFiniteDifferences) {
  expect_gradients(GetParam(), test::kTokens);
}

TEST_P(ModelGradient, OfOneTokenMatchesFiniteDifferences) { expect_gradients(GetParam(), 1); }

// Not to the bit: a sum that starts from g rounds otherwise than one that starts from zero.
TEST_P(ModelGradient, OfASecondBatchIsAdded) {
  SmallModel small(GetParam().model, DType::kF64);
  const Tensor nll = small.forward_backward();
  const Tensor once = to_dtype(small.gradients, DType::kF64);
  small.model.forward_backward(small.batch(), nll, false, small.context);
  for (double& value : once.span<double>()) value *= 2;
  test::expect_close("gradients", small.gradients.span<double>(), once.span<double>(), 1e-14);
}

TEST_P(ModelGradient, RecomputeAndRerunAreBitwiseEqual) {
  for (const DType dtype : {DType::kF64, DType::kF32}) {
    SmallModel small(GetParam().model, dtype);
    const Tensor nll = small.forward_backward();
    const Tensor gradients = to_dtype(small.gradients, dtype);
    for (const bool recompute_blocks : {false, true}) {
      EXPECT_TRUE(test::same_bits(small.forward_backward(recompute_blocks), nll));
      EXPECT_TRUE(test::same_bits(small.gradients, gradients)) << "recompute " << recompute_blocks;
    }
  }
}

TEST_P(ModelGradient, LayersOverwriteDx) {
  SmallModel small(GetParam().model, DType::kF64);
  const Shape shape{test::kBatch, test::kTokens, GetParam().model.hidden_size()};
  const Tensor x = test::tensor_of(test::random_values("x", shape.numel()), shape, DType::kF64);
  const Tensor d_y = test::tensor_of(test::random_values("d_y", shape.numel()), shape, DType::kF64);
  const Tensor y = test::unset(shape, DType::kF64);
  const Tensor from_nan = test::unset(shape, DType::kF64);
  const Tensor from_zero = Tensor::zeros(shape, DType::kF64);
  const auto expect_overwritten = [&](const auto& layer) {
    const auto saved = layer.forward(x, y, small.context);
    layer.backward(*saved, x, d_y, from_nan, small.context);
    layer.backward(*saved, x, d_y, from_zero, small.context);
    EXPECT_TRUE(test::same_bits(from_nan, from_zero));
    EXPECT_TRUE(std::isfinite(norm_of(from_nan.span<double>())));
  };
  expect_overwritten(small.model.block(1));
  expect_overwritten(small.model.block(1).mixer());
}

INSTANTIATE_TEST_SUITE_P(Models, ModelGradient, testing::ValuesIn(test::model_cases()),
                         test::case_name);

TEST(ModelCases, CoverEveryMixer) {
  const auto* mixers = config::Mixer_descriptor();
  for (int i = 0; i < mixers->value_count(); ++i) {
    const auto mixer = static_cast<config::Mixer>(mixers->value(i)->number());
    EXPECT_FALSE(test::variants_of(mixer).empty())
        << mixers->value(i)->name() << " is not in tests/core/model_cases.h";
  }
}

}  // namespace
}  // namespace ttt
