#include "kernels/shared_qk.h"

#include <gtest/gtest.h>

#include "kernels/reference/shared_qk.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"

namespace ttt::kernels {
namespace {

using reference::CausalConvSizes;
using test::Complex;
using test::expect_close;
using test::ParameterOf;
using test::random_values;
using test::tensor_of;
using test::to_complex;
using test::values_of;
using Values = std::vector<double>;

struct Case {
  std::int64_t batch, tokens, heads, head_dim, window;
  std::optional<RopeOptions> rope;
};

constexpr RopeOptions rope(RopePairing pairing, std::int64_t period, std::int64_t first) {
  return {.pairing = pairing, .base = 10000.0, .period = period, .first_position = first};
}

// The values of a tensor of type T that holds these, rounded.
template <typename T>
Tensor rounded(const Shape& shape, Values& values) {
  Tensor result = tensor_of<T>(shape, values);
  values = values_of<T>(result);
  return result;
}

class SharedQk : public ::testing::TestWithParam<Case> {
 protected:
  Case c = GetParam();
  CausalConvSizes size{c.batch, c.tokens, c.heads* c.head_dim, c.window};
  Shape shape{c.batch, c.tokens, c.heads, c.head_dim};
  Shape w_shape{size.channels, 1, size.window};
  Shape bias_shape{size.channels};
  Shape history_shape{size.batch, size.window - 1, size.channels};

  template <typename T>
  void compare_forward(double tolerance) const;
  // Outputs of type T within `tolerance` of the reference, parameters' gradients within `wide_tolerance`.
  template <typename T>
  void compare_backward(double tolerance, double wide_tolerance) const;
};

TEST_P(SharedQk, ReferenceBackwardMatchesComplexStep) {
  const Values p = random_values("p", shape.numel()), w = random_values("w", w_shape.numel());
  const Values bias = random_values("bias", size.channels), d_y = random_values("d_y", p.size());
  Values d_p(p.size()), d_w(w.size(), 0.0), d_bias(bias.size(), 0.0);
  reference::rotated_conv_backward<double>(size, c.head_dim, c.rope, p, w, d_y,
                                           Values(p.size(), 0.0), d_p, d_w, d_bias);
  const auto cp = to_complex(p), cw = to_complex(w), cb = to_complex(bias);
  const auto loss = [&](const std::vector<Complex>& p_in, const std::vector<Complex>& w_in,
                        const std::vector<Complex>& b_in) {
    std::vector<Complex> y(p.size());
    reference::rotated_conv_forward<Complex>(size, c.head_dim, c.rope, p_in, w_in, b_in, {}, y, {});
    return test::weighted_sum(d_y, y);
  };
  test::expect_gradient("d_p", d_p, p, [&](const auto& in) { return loss(in, cw, cb); });
  test::expect_gradient("d_w", d_w, w, [&](const auto& in) { return loss(cp, in, cb); });
  test::expect_gradient("d_bias", d_bias, bias, [&](const auto& in) { return loss(cp, cw, in); });
}

// With history, whose place final_history takes, and without.
template <typename T>
void SharedQk::compare_forward(double tolerance) const {
  using P = ParameterOf<T>;
  Values p = random_values("p", shape.numel()), history = random_values("h", history_shape.numel());
  Values w[2] = {random_values("w_q", w_shape.numel()), random_values("w_k", w_shape.numel())};
  Values bias[2] = {random_values("bias_q", size.channels), random_values("bias_k", size.channels)};
  const Tensor pt = rounded<T>(shape, p);
  const Tensor w_q = rounded<P>(w_shape, w[0]), w_k = rounded<P>(w_shape, w[1]);
  const Tensor bias_q = rounded<P>(bias_shape, bias[0]), bias_k = rounded<P>(bias_shape, bias[1]);
  const Tensor carried = rounded<T>(history_shape, history);
  Tensor y[2] = {Tensor(shape, kDType<T>), Tensor(shape, kDType<T>)};
  Values expected(p.size()), final_history(history.size());
  Stream stream = test::stream();
  for (const bool has_history : {true, false}) {
    const Values before = has_history ? history : Values{};
    shared_qk_forward(pt, w_q, bias_q, w_k, bias_k, has_history ? carried.view() : TensorView(),
                      y[0], y[1], carried, c.rope, stream);
    for (int which = 0; which < 2; ++which) {
      reference::rotated_conv_forward<double>(size, c.head_dim, c.rope, p, w[which], bias[which],
                                              before, expected, final_history);
      expect_close(which == 0 ? "q" : "k", y[which].span<T>(), expected, tolerance);
    }
    EXPECT_EQ(values_of<T>(carried), final_history);  // copies, no rounding
  }
}

// Gradients of w and bias from 1, added to twice.
template <typename T>
void SharedQk::compare_backward(double tolerance, double wide_tolerance) const {
  using P = ParameterOf<T>;
  Values p = random_values("p", shape.numel());
  Values w[2] = {random_values("w_q", w_shape.numel()), random_values("w_k", w_shape.numel())};
  Values d[2] = {random_values("d_q", shape.numel()), random_values("d_k", shape.numel())};
  const Tensor pt = rounded<T>(shape, p);
  const Tensor w_q = rounded<P>(w_shape, w[0]), w_k = rounded<P>(w_shape, w[1]);
  Values d_p(p.size()), of_k(p.size());
  Values d_w[2] = {Values(w[0].size(), 1.0), Values(w[0].size(), 1.0)};
  Values d_bias[2] = {Values(bias_shape.numel(), 1.0), Values(bias_shape.numel(), 1.0)};
  const Tensor d_w_q = tensor_of<P>(w_shape, d_w[0]), d_w_k = tensor_of<P>(w_shape, d_w[1]);
  const Tensor d_bias_q = tensor_of<P>(bias_shape, d_bias[0]);
  const Tensor d_bias_k = tensor_of<P>(bias_shape, d_bias[1]);
  const Tensor result(shape, kDType<T>);
  Stream stream = test::stream();
  for (int call = 0; call < 2; ++call) {
    const Tensor d_q = rounded<T>(shape, d[0]), d_k = rounded<T>(shape, d[1]);
    shared_qk_backward(pt, w_q, w_k, d_q, d_k, result, d_w_q, d_bias_q, d_w_k, d_bias_k, c.rope,
                       stream);
    reference::rotated_conv_backward<double>(size, c.head_dim, c.rope, p, w[1], d[1],
                                             Values(p.size(), 0.0), of_k, d_w[1], d_bias[1]);
    reference::rotated_conv_backward<double>(size, c.head_dim, c.rope, p, w[0], d[0], of_k, d_p,
                                             d_w[0], d_bias[0]);
    expect_close("d_p", result.span<T>(), d_p, tolerance);
  }
  expect_close("d_w_q", d_w_q.span<P>(), d_w[0], wide_tolerance);
  expect_close("d_w_k", d_w_k.span<P>(), d_w[1], wide_tolerance);
  expect_close("d_bias_q", d_bias_q.span<P>(), d_bias[0], wide_tolerance);
  expect_close("d_bias_k", d_bias_k.span<P>(), d_bias[1], wide_tolerance);
}

TEST_P(SharedQk, DoubleMatchesReference) {
  compare_forward<double>(1e-13);
  compare_backward<double>(1e-13, 1e-13);
}

// Those of the convolution and the rotation: 2 W + 6 roundings of 6e-8 of partial sums that may be a few times the
// result.
TEST_P(SharedQk, FloatMatchesReference) {
  compare_forward<float>(3e-6);
  compare_backward<float>(3e-6, 3e-6);
}

#ifdef TTT_TEST_CUDA
// Arithmetic in fp32. In one pass activations are rounded to bf16 once, 2^-8. What is two convolutions and two rotations
// rounds d_q, d_k and k's part of d_p as well, each up to a few times as large as their sum, and the rotation's input.
TEST_P(SharedQk, BFloat16MatchesReference) {
  const bool is_one_pass =
      c.window <= 4 && (c.rope ? c.rope->pairing == RopePairing::kInterleaved && c.head_dim % 4 == 0
                               : size.channels % 4 == 0);
  compare_forward<BFloat16>(is_one_pass ? 4e-3 : 8e-3);
  compare_backward<BFloat16>(is_one_pass ? 4e-3 : 2e-2, is_one_pass ? 3e-6 : 8e-3);
}
#endif

INSTANTIATE_TEST_SUITE_P(
    Cases, SharedQk,
    ::testing::Values(Case{1, 1, 1, 1, 1, {}}, Case{2, 5, 1, 3, 4, {}}, Case{2, 3, 3, 4, 4, {}},
                      Case{1, 1, 1, 2, 4, rope(RopePairing::kInterleaved, 16, 0)},
                      Case{1, 2, 1, 4, 4, rope(RopePairing::kInterleaved, 16, 15)},  // T < W - 1
                      Case{2, 9, 2, 4, 3, rope(RopePairing::kInterleaved, 4, 2)},
                      Case{1, 7, 1, 8, 1, rope(RopePairing::kInterleaved, 1, 9)},
                      Case{2, 5, 3, 6, 4, rope(RopePairing::kInterleaved, 3, 0)},
                      Case{2, 5, 3, 6, 4, rope(RopePairing::kHalves, 0, 100)},
                      Case{1, 6, 2, 4, 4, rope(RopePairing::kInterleaved, 0, 30000)},
                      Case{1, 6, 2, 4, 7, rope(RopePairing::kInterleaved, 16, 3)}));

// Too large for the complex step: several tiles of channels, runs of tokens that begin inside a period, more runs than
// groups of threads.
using LargeSharedQk = SharedQk;

TEST_P(LargeSharedQk, FloatMatchesReference) {
  compare_forward<float>(3e-6);
  compare_backward<float>(3e-6, 3e-6);
}

#ifdef TTT_TEST_CUDA
TEST_P(LargeSharedQk, BFloat16MatchesReference) {
  compare_forward<BFloat16>(4e-3);
  compare_backward<BFloat16>(4e-3, 3e-6);
}
#endif

INSTANTIATE_TEST_SUITE_P(
    Cases, LargeSharedQk,
    ::testing::Values(Case{2, 71, 3, 64, 4, rope(RopePairing::kInterleaved, 16, 0)},
                      Case{1, 290, 2, 12, 4, rope(RopePairing::kInterleaved, 7, 3)},
                      Case{1100, 3, 1, 4, 4, {}}));

// Every cut, so that pieces are also shorter than the window: history and the first position carry q and k on.
TEST(SharedQkPieces, OfFloatsWithHistoryEqualOnePass) {
  constexpr std::int64_t kTokens = 9, kChannels = 8, kWindow = 4;
  Stream stream = test::stream();
  const auto of = [](const char* name, const Shape& shape) {
    return tensor_of<float>(shape, random_values(name, shape.numel()));
  };
  const Shape shape{1, kTokens, 2, 4};
  const Tensor p = of("p", shape), w_q = of("w_q", {kChannels, 1, kWindow});
  const Tensor w_k = of("w_k", {kChannels, 1, kWindow});
  const Tensor bias_q = of("bias_q", {kChannels}), bias_k = of("bias_k", {kChannels});
  const auto run = [&](std::int64_t begin, std::int64_t end, TensorView history, TensorView q,
                       TensorView k, TensorView final_history) {
    const auto piece = [&](TensorView view) {
      return view.reshape({kTokens, 2, 4}).slice(begin, end).reshape({1, end - begin, 2, 4});
    };
    shared_qk_forward(piece(p), w_q, bias_q, w_k, bias_k, history, piece(q), piece(k),
                      final_history, rope(RopePairing::kInterleaved, 4, begin), stream);
  };
  Tensor q(shape, DType::kF32), k(shape, DType::kF32), history({1, kWindow - 1, 8}, DType::kF32);
  run(0, kTokens, {}, q, k, {});
  for (std::int64_t cut = 1; cut < kTokens; ++cut) {
    Tensor q_pieces(shape, DType::kF32), k_pieces(shape, DType::kF32);
    run(0, cut, {}, q_pieces, k_pieces, history);
    run(cut, kTokens, history, q_pieces, k_pieces, history);
    EXPECT_EQ(values_of<float>(q_pieces), values_of<float>(q)) << "cut at " << cut;
    EXPECT_EQ(values_of<float>(k_pieces), values_of<float>(k)) << "cut at " << cut;
  }
}

TEST(SharedQkThreads, BitsDoNotDependOnTheirNumber) {
  test::expect_same_bits_for_any_thread_count([] {
    Stream stream;
    const Shape shape{3, 401, 3, 12}, w_shape{36, 1, 4};
    const auto of = [](const char* name, const Shape& any) {
      return tensor_of<float>(any, random_values(name, any.numel()));
    };
    const Tensor p = of("p", shape), d_q = of("d_q", shape), d_k = of("d_k", shape);
    const Tensor w_q = of("w_q", w_shape), w_k = of("w_k", w_shape), bias = of("bias", {36});
    const Tensor q(shape, DType::kF32), k(shape, DType::kF32), d_p(shape, DType::kF32);
    std::vector<Tensor> sums;
    for (const Shape& any : {w_shape, Shape{36}, w_shape, Shape{36}}) {
      sums.push_back(Tensor::zeros(any, DType::kF32));
    }
    const RopeOptions options = rope(RopePairing::kInterleaved, 16, 0);
    shared_qk_forward(p, w_q, bias, w_k, bias, {}, q, k, {}, options, stream);
    shared_qk_backward(p, w_q, w_k, d_q, d_k, d_p, sums[0], sums[1], sums[2], sums[3], options,
                       stream);
    sums.insert(sums.end(), {q, k, d_p});
    return sums;
  });
}

TEST(SharedQkErrors, NameTheArgument) {
  Stream stream;
  Tensor p({1, 5, 2, 3}, DType::kF32), w({6, 1, 4}, DType::kF32), bias({6}, DType::kF32);
  Tensor q({1, 5, 2, 3}, DType::kF32), history({1, 4, 6}, DType::kF32);
  const auto forward = [&](TensorView past, TensorView k, const std::optional<RopeOptions>& with) {
    shared_qk_forward(p, w, bias, w, bias, past, q, k, {}, with, stream);
  };
  test::expect_error(ExitCode::kInternal, "history has shape [1, 4, 6], expected [1, 3, 6]",
                     [&] { forward(history, q, {}); });
  test::expect_error(ExitCode::kInternal, "q and k must not alias p", [&] { forward({}, p, {}); });
  test::expect_error(ExitCode::kInternal, "even head dim, not 3",
                     [&] { forward({}, q, RopeOptions{}); });
  test::expect_error(ExitCode::kInternal, "d_p must not alias d_q or d_k",
                     [&] { shared_qk_backward(p, w, w, q, q, q, w, bias, w, bias, {}, stream); });
}

}  // namespace
}  // namespace ttt::kernels
