#include "kernels/head_cross_entropy.h"

#include <gmock/gmock.h>
#include <omp.h>

#include "core/base/memory.h"
#include "kernels/reference/head_cross_entropy.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"
#include "tests/support/tensors.h"

namespace ttt::kernels {
namespace {

using test::error_of;
using test::expect_close;
using test::expect_gradient;
using test::random_values;
using test::tensor_of;
using test::unset;
using test::values_of;
using Complex = std::complex<double>;

struct Sizes {
  std::int64_t tokens, channels, vocab;
};

void PrintTo(const Sizes& s, std::ostream* os) {
  *os << "N" << s.tokens << " C" << s.channels << " V" << s.vocab;
}

struct Result {
  std::vector<double> nll, d_x, d_w;
};

struct Case {
  Sizes size;
  std::vector<double> x, w, token_weight, d_w_before;
  std::vector<std::int64_t> targets;

  explicit Case(const Sizes& s)
      : size(s),
        x(random_values("x", s.tokens * s.channels)),
        w(random_values("w", s.vocab * s.channels)),
        token_weight(random_values("weight", s.tokens)),
        d_w_before(random_values("d_w_before", s.vocab * s.channels)) {
    for (std::int64_t n = 0; n < s.tokens; ++n) targets.push_back((n * 7919 + 3) % s.vocab);
    if (s.tokens > 2) token_weight[1] = 0;
  }

  [[nodiscard]] Result reference() const {
    Result out{std::vector<double>(targets.size()), std::vector<double>(x.size()), d_w_before};
    reference::head_cross_entropy_forward(x.data(), w.data(), targets.data(), out.nll.data(),
                                          size.tokens, size.channels, size.vocab);
    reference::head_cross_entropy_backward(x.data(), w.data(), targets.data(), token_weight.data(),
                                           out.d_x.data(), out.d_w.data(), size.tokens,
                                           size.channels, size.vocab);
    return out;
  }

  [[nodiscard]] Tensor target_tensor() const {
    Tensor tensor({size.tokens}, DType::kI64);
    std::ranges::copy(targets, tensor.data<std::int64_t>());
    return tensor;
  }

  [[nodiscard]] Result run(DType dtype, Precision precision, bool gradients = true) const {
    return run_on(test::stream(), dtype, precision, gradients);
  }
  [[nodiscard]] Result cpu(DType dtype, Precision precision) const {
    return run_on({}, dtype, precision, true);
  }

  // Parameters stay F32 beside BF16 activations.
  [[nodiscard]] Result run_on(Stream stream, DType dtype, Precision precision,
                              bool gradients) const {
    const DType parameter_type = dtype == DType::kBF16 ? DType::kF32 : dtype;
    const Shape x_shape{size.tokens, size.channels};
    const Shape w_shape{size.vocab, size.channels};
    const Tensor nll = unset({size.tokens}, DType::kF64);
    const Tensor d_x = unset(x_shape, dtype);
    const Tensor d_w = tensor_of(d_w_before, w_shape, parameter_type);
    head_cross_entropy(tensor_of(x, x_shape, dtype), tensor_of(w, w_shape, parameter_type),
                       target_tensor(), tensor_of(token_weight, {size.tokens}, DType::kF64), nll,
                       gradients ? d_x.view() : TensorView(), gradients ? d_w.view() : TensorView(),
                       precision, stream);
    stream.synchronize();
    return {values_of(nll), values_of(d_x), values_of(d_w)};
  }
};

void expect_result(const Result& actual, const Result& expected, double tolerance) {
  expect_close("nll", actual.nll, expected.nll, tolerance);
  expect_close("d_x", actual.d_x, expected.d_x, tolerance);
  expect_close("d_w", actual.d_w, expected.d_w, tolerance);
}

class HeadCrossEntropy : public testing::TestWithParam<Sizes> {};

TEST_P(HeadCrossEntropy, DoubleEqualsReference) {
  const Case c(GetParam());
  expect_result(c.run(DType::kF64, Precision::kNative), c.reference(), 1e-12);
}

TEST_P(HeadCrossEntropy, FloatEqualsReference) {
  const Case c(GetParam());
  // Logits of size sqrt(C) carry a rounding of 1e-6, which becomes a relative error of the probabilities.
  expect_result(c.run(DType::kF32, Precision::kNative), c.reference(), 1e-5);
}

TEST_P(HeadCrossEntropy, BFloat16IsNearTheReference) {
  const Case c(GetParam());
  // Operands carry 2^-9 each; logits of a few units turn it into some per cent of a probability.
  expect_result(c.run(DType::kF32, Precision::kBF16), c.reference(), 5e-2);
}

TEST_P(HeadCrossEntropy, FloatLossAloneHasTheSameBits) {
  const Case c(GetParam());
  for (const Precision precision : {Precision::kNative, Precision::kBF16}) {
    EXPECT_EQ(c.run(DType::kF32, precision, false).nll, c.run(DType::kF32, precision).nll);
  }
}

#ifdef TTT_TEST_CUDA
// As above; the logits are rounded too.
TEST_P(HeadCrossEntropy, BFloat16ActivationsAreNearTheReference) {
  const Case c(GetParam());
  expect_result(c.run(DType::kBF16, Precision::kBF16), c.reference(), 5e-2);
}

// Operands of few bits make logits that bf16 holds: then nll is exact to fp32, and gradients carry the rounding of d_z
// and of themselves, 2^-9 each, beside a maximum that may be smaller than the terms of its sum.
TEST_P(HeadCrossEntropy, BFloat16LossIsExactWhereTheLogitsAre) {
  Case c(GetParam());
  for (std::size_t i = 0; i < c.x.size(); ++i) c.x[i] = static_cast<double>(i * 7 % 3) - 1.0;
  for (std::size_t i = 0; i < c.w.size(); ++i) c.w[i] = 0.5 * static_cast<double>(i * 5 % 7) - 1.5;
  for (const Precision precision : {Precision::kNative, Precision::kBF16}) {
    const Result actual = c.run(DType::kBF16, precision);
    const Result expected = c.reference();
    expect_close("nll", actual.nll, expected.nll, 1e-6);
    expect_close("d_x", actual.d_x, expected.d_x, 8e-3);
    expect_close("d_w", actual.d_w, expected.d_w, 8e-3);
  }
}
#endif

TEST_P(HeadCrossEntropy, BitsDoNotDependOnTheNumberOfThreads) {
  const Case c(GetParam());
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const Result one = c.cpu(DType::kF32, Precision::kNative);
  for (const int count : {2, 3}) {
    omp_set_num_threads(count);
    const Result many = c.cpu(DType::kF32, Precision::kNative);
    EXPECT_EQ(one.nll, many.nll);
    EXPECT_EQ(one.d_x, many.d_x);
    EXPECT_EQ(one.d_w, many.d_w);
  }
  omp_set_num_threads(threads);
}

// 600 tokens are two chunks on the CPU, 4100 on CUDA; 9000 words are more than one block's width there.
INSTANTIATE_TEST_SUITE_P(Sizes, HeadCrossEntropy,
                         testing::Values(Sizes{1, 1, 1}, Sizes{1, 5, 7}, Sizes{3, 1, 2},
                                         Sizes{65, 33, 129}, Sizes{600, 9, 1001}, Sizes{4100, 2, 5},
                                         Sizes{5, 3, 9001}));

TEST(HeadCrossEntropyReference, GradientsMatchComplexStep) {
  Case c({4, 3, 5});
  c.d_w_before.assign(c.w.size(), 0);
  const Result result = c.reference();
  const auto loss = [&](const std::vector<Complex>& x, const std::vector<Complex>& w) {
    std::vector<Complex> nll(4);
    reference::head_cross_entropy_forward(x.data(), w.data(), c.targets.data(), nll.data(), 4, 3,
                                          5);
    Complex sum{};
    for (std::size_t n = 0; n < 4; ++n) sum += c.token_weight[n] * nll[n];
    return sum;
  };
  const std::vector<Complex> x(c.x.begin(), c.x.end());
  const std::vector<Complex> w(c.w.begin(), c.w.end());
  expect_gradient("d_x", result.d_x, c.x, [&](const auto& point) { return loss(point, w); });
  expect_gradient("d_w", result.d_w, c.w, [&](const auto& point) { return loss(x, point); });
}

TEST(HeadCrossEntropyContract, TargetOutsideTheVocabularyIsCorruptInput) {
  for (const std::int64_t bad : {std::int64_t{5}, std::int64_t{-1}}) {
    Case c({4, 3, 5});
    c.targets[2] = bad;
    ExitCode code = ExitCode::kOk;
    const std::string message =
        error_of([&] { return c.cpu(DType::kF32, Precision::kNative); }, &code);
    EXPECT_EQ(code, ExitCode::kCorruptInput);
    EXPECT_THAT(message, testing::HasSubstr(fmt::format(
                             "target {} at position 2 is outside the vocabulary", bad)));
  }
}

void expect_any_target_without_weight(DType dtype, double tolerance) {
  Case c({4, 3, 5});
  c.targets[1] = -100;
  const Result result = c.run(dtype, Precision::kNative);
  EXPECT_EQ(result.nll[1], 0);
  EXPECT_THAT(std::vector<double>(result.d_x.begin() + 3, result.d_x.begin() + 6),
              testing::Each(0.0));
  expect_result(result, c.reference(), tolerance);
}

TEST(HeadCrossEntropyContract, DoubleTargetWithoutWeightMayBeAnything) {
  expect_any_target_without_weight(DType::kF64, 1e-12);
}
TEST(HeadCrossEntropyContract, FloatTargetWithoutWeightMayBeAnything) {
  expect_any_target_without_weight(DType::kF32, 1e-6);  // some ten roundings of 6e-8
}

#ifdef TTT_TEST_CUDA
TEST(CudaHeadCrossEntropy, TargetOutsideTheVocabularyGivesNan) {
  for (const std::int64_t bad : {std::int64_t{5}, std::int64_t{-1}}) {
    Case c({4, 3, 5});
    c.targets[2] = bad;
    const Result result = c.run(DType::kF32, Precision::kNative);
    for (std::size_t n = 0; n < 4; ++n) EXPECT_EQ(std::isnan(result.nll[n]), n == 2) << n;
    for (std::size_t i = 0; i < 12; ++i) EXPECT_EQ(std::isnan(result.d_x[i]), i / 3 == 2) << i;
    for (const double value : result.d_w) EXPECT_TRUE(std::isnan(value));
  }
}
#endif

// Also a token without weight keeps its zero gradient.
TEST(HeadCrossEntropyContract, FloatLogitsMayBeInfinite) {
  Case c({3, 2, 4});
  c.x = {1e38, 1e38, 1e38, 1e38, 1, 1};
  c.w = {10, 10, -1, 2, -10, -10, 0.5, 3};
  const Result result = c.run(DType::kF32, Precision::kNative);
  EXPECT_TRUE(std::isnan(result.nll[0]));
  EXPECT_EQ(result.d_x[2], 0);
  EXPECT_EQ(result.d_x[3], 0);
  EXPECT_TRUE(std::isfinite(result.nll[2]));
}

TEST(HeadCrossEntropyContract, FloatLargeLogitsDoNotOverflow) {
  Case c({3, 2, 4});
  for (double& value : c.x) value *= 1e3;
  const Result result = c.run(DType::kF32, Precision::kNative);
  EXPECT_THAT(result.d_x, testing::Each(testing::Truly([](double v) { return std::isfinite(v); })));
  expect_close("nll", result.nll, c.reference().nll, 1e-6);
}

TEST(HeadCrossEntropyMemory, FullLogitsNeverExist) {
  Stream stream;
  const std::int64_t tokens = 4096;
  const std::int64_t vocab = 32000;
  const Tensor x = Tensor::zeros({tokens, 2}, DType::kF32);
  const Tensor w = Tensor::zeros({vocab, 2}, DType::kF32);
  const Tensor targets = Tensor::zeros({tokens}, DType::kI64);
  const Tensor weight = Tensor::zeros({tokens}, DType::kF64);
  const Tensor nll({tokens}, DType::kF64);
  const std::int64_t before = memory::live_bytes();
  memory::reset_peak();
  head_cross_entropy(x, w, targets, weight, nll, {}, {}, Precision::kNative, stream);
  const std::int64_t scratch = memory::peak_bytes() - before;
  EXPECT_LE(scratch, std::int64_t{80} << 20);  // all logits together would be 524 MB
  EXPECT_NEAR(nll.data<double>()[tokens - 1], std::log(32000.0), 1e-5);
}

}  // namespace
}  // namespace ttt::kernels
