#include "kernels/rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/reference/rope.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"

namespace ttt::kernels {
namespace {

using test::Complex;
using test::expect_close;
using test::random_values;
using test::tensor_of;
using test::values_of;
using Values = std::vector<double>;

struct Case {
  std::int64_t batch, tokens, heads, head_dim;
  RopeOptions options;
};

class Rope : public ::testing::TestWithParam<Case> {
 protected:
  Case c = GetParam();
  Shape shape{c.batch, c.tokens, c.heads, c.head_dim};
  Values x = random_values("x", shape.numel());
  Values d_y = random_values("d_y", shape.numel());
};

TEST_P(Rope, ReferenceBackwardMatchesComplexStep) {
  Values d_x(x.size());
  reference::rope_backward<double>(c.tokens, c.heads, c.head_dim, c.options, d_y, d_x);
  test::expect_gradient("d_x", d_x, x, [&](const std::vector<Complex>& in) {
    std::vector<Complex> y(x.size());
    reference::rope_forward<Complex>(c.tokens, c.heads, c.head_dim, c.options, in, y);
    return test::weighted_sum(d_y, y);
  });
}

// y and d_x are written in place, which the header allows.
template <typename T>
void compare_with_reference(const Case& c, const Shape& shape, const Values& x, double tolerance) {
  Stream stream = test::stream();
  Tensor forward = tensor_of<T>(shape, x), backward = tensor_of<T>(shape, x);
  const Values rounded = values_of<T>(forward);
  Values expected(x.size());
  rope_forward(forward, forward, c.options, stream);
  reference::rope_forward<double>(c.tokens, c.heads, c.head_dim, c.options, rounded, expected);
  expect_close("y", forward.span<T>(), expected, tolerance);
  rope_backward(backward, backward, c.options, stream);
  reference::rope_backward<double>(c.tokens, c.heads, c.head_dim, c.options, rounded, expected);
  expect_close("d_x", backward.span<T>(), expected, tolerance);
  Tensor apart(shape, kDType<T>);
  rope_backward(forward, apart, c.options, stream);
  expect_close("the inverse", apart.span<T>(), rounded, 2 * tolerance);
}

TEST_P(Rope, DoubleMatchesReference) { compare_with_reference<double>(c, shape, x, 1e-13); }

// Angles are fp64: cosine, sine, two products and a sum are rounded once each.
TEST_P(Rope, FloatMatchesReference) { compare_with_reference<float>(c, shape, x, 5e-7); }

#ifdef TTT_TEST_CUDA
// Arithmetic in fp32; the result is rounded to bf16 once: 2^-8.
TEST_P(Rope, BFloat16MatchesReference) { compare_with_reference<BFloat16>(c, shape, x, 4e-3); }
#endif

constexpr RopeOptions options(RopePairing pairing, std::int64_t period, std::int64_t first) {
  return {.pairing = pairing, .base = 10000.0, .period = period, .first_position = first};
}
INSTANTIATE_TEST_SUITE_P(
    Cases, Rope,
    ::testing::Values(Case{1, 1, 1, 2, options(RopePairing::kInterleaved, 0, 0)},
                      Case{1, 1, 1, 2, options(RopePairing::kHalves, 0, 7)},
                      Case{2, 5, 3, 6, options(RopePairing::kInterleaved, 0, 11)},
                      Case{2, 5, 3, 6, options(RopePairing::kHalves, 0, 100)},
                      Case{2, 7, 1, 10, options(RopePairing::kInterleaved, 3, 2)},
                      Case{1, 3, 2, 34, options(RopePairing::kHalves, 16, 15)},
                      Case{1, 5, 1, 4, options(RopePairing::kInterleaved, 1, 9)},
                      Case{2, 3, 2, 16, options(RopePairing::kInterleaved, 0, 30000)},
                      Case{2, 3, 2, 16, options(RopePairing::kHalves, 2, 1)},
                      Case{1, 2, 9, 32, options(RopePairing::kInterleaved, 1000000007, 123456)},
                      Case{1, 2, 9, 32, options(RopePairing::kHalves, 0, 3)}));

// Whole chunks in memory that begins between two of them.
TEST(RopeAlignment, FloatHeadsMayBeginAnywhere) {
  Stream stream = test::stream();
  const Case c{1, 2, 2, 16, options(RopePairing::kHalves, 0, 5)};
  const Tensor data = tensor_of<float>({65}, random_values("x", 65));
  const TensorView x = data.view().slice(1, 65).reshape({1, 2, 2, 16});
  const Values before(x.span<float>().begin(), x.span<float>().end());
  Values expected(64);
  for (const auto pairing : {RopePairing::kHalves, RopePairing::kInterleaved}) {
    RopeOptions with = c.options;
    with.pairing = pairing;
    Tensor y_data({65}, DType::kF32);
    const TensorView y = y_data.view().slice(1, 65).reshape({1, 2, 2, 16});
    rope_forward(x, y, with, stream);
    reference::rope_forward<double>(c.tokens, c.heads, c.head_dim, with, before, expected);
    expect_close("y", y.span<float>(), expected, 5e-7);
  }
}

// Interleaving the two halves of a head turns one pairing into the other.
TEST(RopePairings, HalvesOfThePermutedHeadAreInterleaved) {
  constexpr std::int64_t kHalf = 5;
  const Shape shape{2, 4, 3, 2 * kHalf};
  const Values x = random_values("x", shape.numel());
  const auto permute = [&](const Values& interleaved) {  // (2i, 2i+1) -> (i, i + F/2)
    Values halves(interleaved.size());
    for (std::size_t head = 0; head < interleaved.size(); head += 2 * kHalf) {
      for (std::size_t i = 0; i < kHalf; ++i) {
        halves[head + i] = interleaved[head + 2 * i];
        halves[head + kHalf + i] = interleaved[head + 2 * i + 1];
      }
    }
    return halves;
  };
  Stream stream;
  Tensor interleaved = tensor_of<double>(shape, x), halves = tensor_of<double>(shape, permute(x));
  rope_forward(interleaved, interleaved, options(RopePairing::kInterleaved, 0, 3), stream);
  rope_forward(halves, halves, options(RopePairing::kHalves, 0, 3), stream);
  EXPECT_EQ(values_of<double>(halves), permute(values_of<double>(interleaved)));
}

TEST(RopePairings, KnownAngles) {
  Stream stream;
  Tensor x = tensor_of<double>({1, 1, 1, 4}, {1, 0, 0, 1});
  rope_forward(x, x, options(RopePairing::kInterleaved, 0, 3), stream);
  // Angles 3 * 10000^0 and 3 * 10000^(-1/2).
  expect_close("y", x.span<double>(),
               Values{std::cos(3.0), std::sin(3.0), -std::sin(0.03), std::cos(0.03)}, 1e-15);
}

TEST(RopePositions, RepeatWithThePeriod) {
  Stream stream;
  const Values row = random_values("row", 8);
  Values rows;
  for (int t = 0; t < 9; ++t) rows.insert(rows.end(), row.begin(), row.end());
  Tensor x = tensor_of<double>({1, 9, 1, 8}, rows);
  rope_forward(x, x, options(RopePairing::kInterleaved, 4, 6), stream);
  const auto y = values_of<double>(x);
  // Positions 2 3 0 1 2 3 0 1 2: token 2 is unrotated, tokens 4 apart agree.
  EXPECT_EQ(Values(y.begin() + 16, y.begin() + 24), row);
  EXPECT_EQ(Values(y.begin(), y.begin() + 40), Values(y.begin() + 32, y.end()));
}

TEST(RopeThreads, BitsDoNotDependOnTheirNumber) {
  test::expect_same_bits_for_any_thread_count([] {
    Stream stream;
    const Shape shape{2, 301, 3, 34};
    Tensor x = tensor_of<float>(shape, random_values("x", shape.numel()));
    rope_forward(x, x, options(RopePairing::kInterleaved, 0, 0), stream);
    return std::vector<Tensor>{x};
  });
}

TEST(RopeErrors, OddHeadDimAndShapes) {
  Stream stream;
  Tensor x({1, 2, 1, 3}, DType::kF32), y({1, 2, 1, 4}, DType::kF32);
  test::expect_error(ExitCode::kInternal, "even head dim, not 3",
                     [&] { rope_forward(x, x, {}, stream); });
  test::expect_error(ExitCode::kInternal, "d_x has shape [1, 2, 1, 4], expected [1, 2, 1, 3]",
                     [&] { rope_backward(x, y, {}, stream); });
  test::expect_error(ExitCode::kInternal, "neither may be negative",
                     [&] { rope_forward(y, y, options(RopePairing::kHalves, -1, 0), stream); });
}

}  // namespace
}  // namespace ttt::kernels
