#include "kernels/activation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/cpu/vector_math.h"
#include "kernels/reference/activation.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"

namespace ttt::kernels {
namespace {

using test::Complex;
using test::expect_close;
using test::random_values;
using test::tensor_of;
using test::to_complex;
using test::values_of;
using test::weighted_sum;
using Values = std::vector<double>;

struct Case {
  Activation kind;
  std::int64_t count;
};

class ActivationKinds : public ::testing::TestWithParam<Case> {
 protected:
  ActivationKinds() {
    for (double& value : a) value *= 2;  // reaches the flat ends
    a[0] =
        0.75;  // alone it is compared to itself: not on the tail, where the definition's 1 + tanh cancels
  }

  template <typename T>
  void compare_with_reference(double tolerance) const;

  Activation kind = GetParam().kind;
  Shape shape{GetParam().count};
  Values a = random_values("a", GetParam().count);
  Values b = random_values("b", GetParam().count);
  Values d = random_values("d", GetParam().count);
};

TEST_P(ActivationKinds, ReferenceBackwardMatchesComplexStep) {
  Values d_a(a.size()), d_b(a.size());
  reference::activation_backward<double>(kind, a, d, d_a);
  test::expect_gradient("d_x", d_a, a, [&](const std::vector<Complex>& in) {
    std::vector<Complex> y(a.size());
    reference::activation_forward<Complex>(kind, in, y);
    return weighted_sum(d, y);
  });
  reference::gated_backward<double>(kind, a, b, d, d_a, d_b);
  const auto loss = [&](const std::vector<Complex>& a_in, const std::vector<Complex>& b_in) {
    std::vector<Complex> h(a.size());
    reference::gated_forward<Complex>(kind, a_in, b_in, h);
    return weighted_sum(d, h);
  };
  test::expect_gradient("d_a", d_a, a, [&](const auto& in) { return loss(in, to_complex(b)); });
  test::expect_gradient("d_b", d_b, b, [&](const auto& in) { return loss(to_complex(a), in); });
}

// Outputs over inputs in every way the header allows.
template <typename T>
void ActivationKinds::compare_with_reference(double tolerance) const {
  Stream stream = test::stream();
  const Tensor at = tensor_of<T>(shape, a), bt = tensor_of<T>(shape, b),
               dt = tensor_of<T>(shape, d);
  const Values ar = values_of<T>(at), br = values_of<T>(bt), dr = values_of<T>(dt);
  Values expected(a.size()), d_a_ref(a.size()), d_b_ref(a.size());

  Tensor y(shape, kDType<T>);
  activation_forward(kind, at, y, stream);
  reference::activation_forward<double>(kind, ar, expected);
  expect_close("y", y.span<T>(), expected, tolerance);

  Tensor d_x = to_dtype(dt, kDType<T>);
  activation_backward(kind, at, d_x, d_x, stream);
  reference::activation_backward<double>(kind, ar, dr, expected);
  expect_close("d_x", d_x.span<T>(), expected, tolerance);

  Tensor h = to_dtype(bt, kDType<T>);
  gated_forward(kind, at, h, h, stream);
  reference::gated_forward<double>(kind, ar, br, expected);
  expect_close("h", h.span<T>(), expected, tolerance);

  reference::gated_backward<double>(kind, ar, br, dr, d_a_ref, d_b_ref);
  for (int aliasing = 0; aliasing < 4; ++aliasing) {
    Tensor a2 = to_dtype(at, kDType<T>), b2 = to_dtype(bt, kDType<T>), d2 = to_dtype(dt, kDType<T>);
    Tensor apart(shape, kDType<T>);
    const std::vector<std::pair<Tensor, Tensor>> outputs{
        {a2, b2}, {b2, a2}, {d2, apart}, {apart, d2}};
    const auto& [d_a, d_b] = outputs[static_cast<std::size_t>(aliasing)];
    gated_backward(kind, a2, b2, d2, d_a, d_b, stream);
    expect_close("d_a", d_a.template span<T>(), d_a_ref, tolerance);
    expect_close("d_b", d_b.template span<T>(), d_b_ref, tolerance);
  }
}

TEST_P(ActivationKinds, DoubleMatchesReference) { compare_with_reference<double>(1e-13); }

// The exponential and some ten more roundings of 6e-8, where the slope's terms cancel.
TEST_P(ActivationKinds, FloatMatchesReference) { compare_with_reference<float>(1e-6); }

#ifdef TTT_TEST_CUDA
// Arithmetic in fp32; the result is rounded to bf16 once: 2^-8.
TEST_P(ActivationKinds, BFloat16MatchesReference) { compare_with_reference<BFloat16>(4e-3); }
#endif

INSTANTIATE_TEST_SUITE_P(
    Cases, ActivationKinds,
    ::testing::Values(Case{Activation::kSilu, 1}, Case{Activation::kSilu, 1037},
                      Case{Activation::kGeluTanh, 1}, Case{Activation::kGeluTanh, 1037},
                      Case{Activation::kGeluErf, 1}, Case{Activation::kGeluErf, 1037}));

struct SwiGluSizes {
  std::int64_t rows, hidden;
};
class SwiGlu : public ::testing::TestWithParam<SwiGluSizes> {
 protected:
  template <typename T>
  void compare_with_reference(double tolerance) const;

  Shape gate_up_shape{GetParam().rows, 2 * GetParam().hidden};
  Shape h_shape{GetParam().rows, GetParam().hidden};
  std::size_t hidden = static_cast<std::size_t>(GetParam().hidden);
  Values gate_up = random_values("gate_up", gate_up_shape.numel());
  Values d_h = random_values("d_h", h_shape.numel());
};

TEST_P(SwiGlu, ReferenceBackwardMatchesComplexStep) {
  Values d_gate_up(gate_up.size()), h(d_h.size()), h_again(d_h.size());
  reference::swiglu_forward<double>(gate_up, h, hidden);
  reference::swiglu_backward<double>(gate_up, d_h, d_gate_up, h_again, hidden);
  EXPECT_EQ(h, h_again);
  test::expect_gradient("d_gate_up", d_gate_up, gate_up, [&](const std::vector<Complex>& in) {
    std::vector<Complex> out(d_h.size());
    reference::swiglu_forward<Complex>(in, out, hidden);
    return weighted_sum(d_h, out);
  });
}

// Outputs over inputs and apart.
template <typename T>
void SwiGlu::compare_with_reference(double tolerance) const {
  Stream stream = test::stream();
  const Tensor gate_up_in = tensor_of<T>(gate_up_shape, gate_up);
  const Tensor d_h_in = tensor_of<T>(h_shape, d_h);
  Values h_ref(d_h.size()), d_gate_up_ref(gate_up.size());
  reference::swiglu_backward<double>(values_of<T>(gate_up_in), values_of<T>(d_h_in), d_gate_up_ref,
                                     h_ref, hidden);
  const Tensor h(h_shape, kDType<T>);
  swiglu_forward(gate_up_in, h, stream);
  expect_close("h", h.span<T>(), h_ref, tolerance);
  for (const bool apart : {false, true}) {
    const Tensor from = tensor_of<T>(gate_up_shape, gate_up), d = tensor_of<T>(h_shape, d_h);
    const Tensor d_gate_up = apart ? Tensor(gate_up_shape, kDType<T>) : from;
    const Tensor again = apart ? Tensor(h_shape, kDType<T>) : d;
    swiglu_backward(from, d, d_gate_up, again, stream);
    expect_close("d_gate_up", d_gate_up.span<T>(), d_gate_up_ref, tolerance);
    EXPECT_EQ(values_of<T>(again), values_of<T>(h));
  }
}

TEST_P(SwiGlu, DoubleMatchesReference) { compare_with_reference<double>(1e-13); }
TEST_P(SwiGlu, FloatMatchesReference) { compare_with_reference<float>(1e-6); }  // as above
#ifdef TTT_TEST_CUDA
TEST_P(SwiGlu, BFloat16MatchesReference) { compare_with_reference<BFloat16>(4e-3); }  // as above
#endif

// Rows of one unit, of whole chunks and not, longer than a block's threads take at once.
INSTANTIATE_TEST_SUITE_P(Sizes, SwiGlu,
                         ::testing::Values(SwiGluSizes{1, 1}, SwiGluSizes{3, 7}, SwiGluSizes{5, 16},
                                           SwiGluSizes{2, 2056}, SwiGluSizes{4100, 3}));

TEST(ActivationValues, KnownPoints) {
  EXPECT_NEAR(reference::activation_value(Activation::kSilu, 1.0), 0.7310585786300049, 1e-15);
  EXPECT_NEAR(reference::activation_value(Activation::kGeluErf, 1.0), 0.8413447460685429, 1e-15);
  EXPECT_NEAR(reference::activation_value(Activation::kGeluTanh, 1.0), 0.8411919906082768, 1e-15);
}

TEST(ActivationValues, NanAndInfinityPass) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  Stream stream;
  for (const auto kind : {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf}) {
    Tensor x = tensor_of<float>({3}, {std::nan(""), kInf, -80.0});
    activation_forward(kind, x, x, stream);
    EXPECT_TRUE(std::isnan(x.data<float>()[0]));
    EXPECT_EQ(x.data<float>()[1], kInf);
    EXPECT_NEAR(x.data<float>()[2], 0.0, 1e-30);
  }
}

TEST(VectorMath, FloatExponentialIsWithinTwoUlp) {
  double worst = 0;
  for (float x = -87.0F; x < 88.7F; x += 1.37e-3F) {
    const double exact = std::exp(static_cast<double>(x));
    const double ulp = std::ldexp(1.0, std::ilogb(exact) - 23);
    worst = std::max(worst, std::abs(static_cast<double>(exponential(x)) - exact) / ulp);
  }
  EXPECT_LE(worst, 2.0);
  constexpr float kInf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(exponential(0.0F), 1.0F);
  EXPECT_EQ(exponential(89.0F), kInf);
  EXPECT_EQ(exponential(kInf), kInf);
  EXPECT_EQ(exponential(-kInf), 0.0F);
  EXPECT_NEAR(exponential(-100.0F), 3.783506e-44F, 1.5e-45F);  // subnormal
  EXPECT_TRUE(std::isnan(exponential(std::numeric_limits<float>::quiet_NaN())));
}

TEST(Add, AddsInPlace) {
  Stream stream;
  Tensor y = tensor_of<float>({2, 2}, {1, 2, 3, 4});
  add(tensor_of<float>({2, 2}, {10, 20, 30, 40}), y, stream);
  EXPECT_EQ(values_of<float>(y), (Values{11, 22, 33, 44}));
}

TEST(ActivationThreads, BitsDoNotDependOnTheirNumber) {
  test::expect_same_bits_for_any_thread_count([] {
    Stream stream;
    const Shape shape{3, 30011};
    const Tensor a = tensor_of<float>(shape, random_values("a", shape.numel()));
    Tensor h(shape, DType::kF32), d_a(shape, DType::kF32), d_b(shape, DType::kF32);
    gated_forward(Activation::kGeluTanh, a, a, h, stream);
    gated_backward(Activation::kSilu, a, a, h, d_a, d_b, stream);
    Tensor d_gate_up({6, 30011 / 3 * 2}, DType::kF32), hidden({6, 30011 / 3}, DType::kF32);
    const TensorView gate_up = a.view().reshape({3 * 30011}).slice(0, d_gate_up.numel());
    swiglu_backward(gate_up.reshape(d_gate_up.shape()),
                    a.view().reshape({3 * 30011}).slice(0, hidden.numel()).reshape(hidden.shape()),
                    d_gate_up, hidden, stream);
    return std::vector<Tensor>{h, d_a, d_b, d_gate_up, hidden};
  });
}

TEST(ActivationErrors, NameTheArgument) {
  Stream stream;
  Tensor a({2, 3}, DType::kF32), b({3, 2}, DType::kF32);
  test::expect_error(ExitCode::kInternal, "b has shape [3, 2], expected [2, 3]",
                     [&] { gated_forward(Activation::kSilu, a, b, a, stream); });
  test::expect_error(ExitCode::kInternal, "y has shape [3, 2], expected [2, 3]",
                     [&] { add(a, b, stream); });
  test::expect_error(ExitCode::kInternal, "gate_up has shape [3, 2], expected [2, 6]",
                     [&] { swiglu_forward(b, a, stream); });
}

}  // namespace
}  // namespace ttt::kernels
