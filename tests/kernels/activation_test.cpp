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
// The exponential and some ten more roundings of 6e-8, where the slope's terms cancel.
TEST_P(SwiGlu, FloatMatchesReference) { compare_with_reference<float>(1e-6); }

#ifdef TTT_TEST_CUDA
// Arithmetic in fp32; the result is rounded to bf16 once: 2^-8.
TEST_P(SwiGlu, BFloat16MatchesReference) { compare_with_reference<BFloat16>(4e-3); }
#endif

// Rows of one unit, of whole chunks and not, longer than a block's threads take at once.
INSTANTIATE_TEST_SUITE_P(Sizes, SwiGlu,
                         ::testing::Values(SwiGluSizes{1, 1}, SwiGluSizes{3, 7}, SwiGluSizes{5, 16},
                                           SwiGluSizes{2, 2056}, SwiGluSizes{4100, 3}));

TEST(ActivationValues, KnownPoints) {
  EXPECT_NEAR(reference::silu(1.0), 0.7310585786300049, 1e-15);
  EXPECT_NEAR(reference::gelu_tanh(1.0), 0.8411919906082768, 1e-15);
}

TEST(SwiGluValues, NanAndInfinityPass) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  Stream stream;
  const Tensor gate_up = tensor_of<float>({3, 2}, {std::nan(""), 1.0, kInf, 1.0, -80.0, 1.0});
  const Tensor h({3, 1}, DType::kF32);
  swiglu_forward(gate_up, h, stream);
  EXPECT_TRUE(std::isnan(h.data<float>()[0]));
  EXPECT_EQ(h.data<float>()[1], kInf);
  EXPECT_NEAR(h.data<float>()[2], 0.0, 1e-30);
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

TEST(SwiGluThreads, BitsDoNotDependOnTheirNumber) {
  test::expect_same_bits_for_any_thread_count([] {
    Stream stream;
    const Shape wide{31, 2 * 2011}, narrow{31, 2011};
    const Tensor gate_up = tensor_of<float>(wide, random_values("gate_up", wide.numel()));
    const Tensor d_h = tensor_of<float>(narrow, random_values("d_h", narrow.numel()));
    Tensor d_gate_up(wide, DType::kF32), h(narrow, DType::kF32), again(narrow, DType::kF32);
    swiglu_forward(gate_up, h, stream);
    swiglu_backward(gate_up, d_h, d_gate_up, again, stream);
    return std::vector<Tensor>{h, d_gate_up, again};
  });
}

TEST(ActivationErrors, NameTheArgument) {
  Stream stream;
  Tensor a({2, 3}, DType::kF32), b({3, 2}, DType::kF32);
  test::expect_error(ExitCode::kInternal, "y has shape [3, 2], expected [2, 3]",
                     [&] { add(a, b, stream); });
  test::expect_error(ExitCode::kInternal, "gate_up has shape [3, 2], expected [2, 6]",
                     [&] { swiglu_forward(b, a, stream); });
}

}  // namespace
}  // namespace ttt::kernels
