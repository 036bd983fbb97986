#include "kernels/inner_learning_rate.h"

#include <gtest/gtest.h>

#include "kernels/reference/inner_learning_rate.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"

namespace ttt::kernels {
namespace {

using test::Complex;
using test::expect_close;
using test::expect_gradient;
using test::random_values;
using test::tensor_of;
using test::to_complex;
using test::values_of;
using test::weighted_sum;
using Values = std::vector<double>;

constexpr double kScale = 1.0 / 64;

struct Sizes {
  std::int64_t tokens, heads;
};

class InnerLearningRate : public ::testing::TestWithParam<Sizes> {
 protected:
  template <typename T>
  void compare_with_reference(double tolerance) const;

  Shape shape{GetParam().tokens, GetParam().heads};
  Shape bias_shape{GetParam().heads};
  Values logits = random_values("logits", shape.numel());
  Values bias = random_values("bias", GetParam().heads);
  Values d_rate = random_values("d_rate", shape.numel());
};

TEST_P(InnerLearningRate, ReferenceBackwardMatchesComplexStep) {
  Values rate(logits.size()), d_logits(logits.size()), d_bias(bias.size(), 0.0);
  reference::inner_learning_rate_forward<double>(logits, bias, rate, kScale);
  reference::inner_learning_rate_backward<double>(rate, d_rate, d_logits, d_bias, kScale);
  const auto loss = [&](const std::vector<Complex>& x, const std::vector<Complex>& b) {
    std::vector<Complex> out(x.size());
    reference::inner_learning_rate_forward<Complex>(x, b, out, kScale);
    return weighted_sum(d_rate, out);
  };
  const auto cx = to_complex(logits), cb = to_complex(bias);
  expect_gradient("d_logits", d_logits, logits, [&](const auto& in) { return loss(in, cb); });
  expect_gradient("d_bias", d_bias, bias, [&](const auto& in) { return loss(cx, in); });
}

// Everything in place; d_bias from 1, added to twice.
template <typename T>
void InnerLearningRate::compare_with_reference(double tolerance) const {
  Stream stream = test::stream();
  Tensor rate = tensor_of<T>(shape, logits);
  const Tensor bt = tensor_of<T>(bias_shape, bias);
  const Values xr = values_of<T>(rate), br = values_of<T>(bt);
  const Values dr = values_of<T>(tensor_of<T>(shape, d_rate));
  Values rate_ref(logits.size()), d_logits_ref(logits.size()), d_bias_ref(bias.size(), 1.0);
  inner_learning_rate_forward(rate, bt, rate, kScale, stream);
  reference::inner_learning_rate_forward<double>(xr, br, rate_ref, kScale);
  expect_close("rate", rate.span<T>(), rate_ref, tolerance);
  Tensor d_bias = tensor_of<T>(bias_shape, d_bias_ref);
  for (int call = 0; call < 2; ++call) {
    Tensor d = tensor_of<T>(shape, d_rate);
    inner_learning_rate_backward(rate, d, d, d_bias, kScale, stream);
    reference::inner_learning_rate_backward<double>(rate_ref, dr, d_logits_ref, d_bias_ref, kScale);
    expect_close("d_logits", d.span<T>(), d_logits_ref, tolerance);
  }
  expect_close("d_bias", d_bias.span<T>(), d_bias_ref, tolerance);
}

TEST_P(InnerLearningRate, DoubleMatchesReference) { compare_with_reference<double>(1e-13); }

// A sigmoid of some five roundings of 6e-8; 1 - rate / scale loses a bit or two more. Rates are F32 beside BF16 too.
TEST_P(InnerLearningRate, FloatMatchesReference) { compare_with_reference<float>(1e-6); }

INSTANTIATE_TEST_SUITE_P(Sizes, InnerLearningRate,
                         ::testing::Values(Sizes{1, 1}, Sizes{5, 3}, Sizes{77, 1}, Sizes{40, 17}));

// Too large for the complex step: more heads than lanes, more tokens than all blocks take at their least.
using LargeInnerLearningRate = InnerLearningRate;

TEST_P(LargeInnerLearningRate, FloatMatchesReference) { compare_with_reference<float>(1e-6); }

INSTANTIATE_TEST_SUITE_P(Sizes, LargeInnerLearningRate,
                         ::testing::Values(Sizes{1003, 40}, Sizes{17000, 2}));

class TokenScale : public ::testing::Test {
 protected:
  // Places 1 and 4 are clamped, place 3 sits on the kink exactly: 1/4 - 1/4.
  Values offset{0.1, -0.9, 0.0, -0.25, -3.0, 0.7, 0.01};
  Values d_scale = random_values("d_scale", 7);

  template <typename T>
  void compare_with_reference(double tolerance) const {
    Stream stream = test::stream();
    const Tensor o = tensor_of<T>({7}, offset), d = tensor_of<T>({7}, d_scale);
    const Values o_r = values_of<T>(o), d_r = values_of<T>(d);
    Tensor scale({7}, kDType<T>);
    Values scale_ref(7), d_offset_ref(7, 1.0);
    Tensor d_offset = tensor_of<T>({7}, d_offset_ref);
    token_scale_forward(o, scale, stream);
    reference::token_scale_forward<double>(o_r, scale_ref);
    expect_close("scale", scale.span<T>(), scale_ref, tolerance);
    for (int call = 0; call < 2; ++call) {
      token_scale_backward(o, d, d_offset, stream);
      reference::token_scale_backward<double>(o_r, d_r, d_offset_ref);
    }
    expect_close("d_offset", d_offset.span<T>(), d_offset_ref, tolerance);
    token_scale_forward({}, scale, stream);
    reference::token_scale_forward<double>({}, scale_ref);
    expect_close("plain", scale.span<T>(), scale_ref, tolerance);
  }
};

TEST_F(TokenScale, ReferenceBackwardMatchesComplexStep) {
  Values d_offset(7, 0.0);
  reference::token_scale_backward<double>(offset, d_scale, d_offset);
  expect_gradient("d_offset", d_offset, offset, [&](const std::vector<Complex>& in) {
    std::vector<Complex> scale(7);
    reference::token_scale_forward<Complex>(in, scale);
    return weighted_sum(d_scale, scale);
  });
  EXPECT_EQ(d_offset[1], 0.0);
  EXPECT_EQ(d_offset[3], d_scale[3]);
}

TEST_F(TokenScale, DoubleMatchesReference) { compare_with_reference<double>(1e-15); }

// A quotient and a sum, rounded once each.
TEST_F(TokenScale, FloatMatchesReference) { compare_with_reference<float>(2e-7); }

TEST(InnerLearningRateThreads, BitsDoNotDependOnTheirNumber) {
  test::expect_same_bits_for_any_thread_count([] {
    Stream stream;
    const Shape shape{5003, 7};
    const Tensor bias = tensor_of<float>({7}, random_values("bias", 7));
    Tensor rate = tensor_of<float>(shape, random_values("logits", shape.numel()));
    Tensor d = tensor_of<float>(shape, random_values("d_rate", shape.numel()));
    Tensor d_bias = Tensor::zeros({7}, DType::kF32);
    inner_learning_rate_forward(rate, bias, rate, kScale, stream);
    inner_learning_rate_backward(rate, d, d, d_bias, kScale, stream);
    return std::vector<Tensor>{rate, d, d_bias};
  });
}

TEST(InnerLearningRateErrors, NameTheArgument) {
  Stream stream;
  Tensor rate({4, 2}, DType::kF32), bias({3}, DType::kF32), scale({16}, DType::kF32);
  test::expect_error(ExitCode::kInternal, "bias has shape [3], expected [2]",
                     [&] { inner_learning_rate_forward(rate, bias, rate, kScale, stream); });
  test::expect_error(ExitCode::kInternal, "offset has shape [3], expected [16]",
                     [&] { token_scale_forward(bias, scale, stream); });
  Tensor d_bias({2}, DType::kF32);
  test::expect_error(ExitCode::kInternal, "scale 0 has no gradient",
                     [&] { inner_learning_rate_backward(rate, rate, rate, d_bias, 0.0, stream); });
}

}  // namespace
}  // namespace ttt::kernels
