#include "kernels/causal_conv.h"

#include <gtest/gtest.h>

#include "kernels/reference/causal_conv.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"

namespace ttt::kernels {
namespace {

using reference::CausalConvSizes;
using test::Complex;
using test::expect_close;
using test::expect_gradient;
using test::ParameterOf;
using test::random_values;
using test::tensor_of;
using test::to_complex;
using test::values_of;
using Values = std::vector<double>;

class CausalConv : public ::testing::TestWithParam<CausalConvSizes> {
 protected:
  CausalConvSizes size = GetParam();
  Shape x_shape{size.batch, size.tokens, size.channels};
  Shape w_shape{size.channels, 1, size.window};
  Shape bias_shape{size.channels};
  Shape history_shape{size.batch, size.window - 1, size.channels};
  Values x = random_values("x", x_shape.numel());
  Values w = random_values("w", w_shape.numel());
  Values bias = random_values("bias", size.channels);
  Values history = random_values("history", history_shape.numel());
  Values residual = random_values("residual", x_shape.numel());
  Values d_y = random_values("d_y", x_shape.numel());

  // Outputs of type T within `tolerance` of the reference, parameters' gradients within `wide_tolerance`.
  template <typename T>
  void compare_with_reference(double tolerance, double wide_tolerance) const;
};

TEST_P(CausalConv, ReferenceBackwardMatchesComplexStep) {
  Values d_x(x.size()), d_w(w.size(), 0.0), d_bias(bias.size(), 0.0);
  reference::causal_conv_backward<double>(size, x, w, d_y, residual, d_x, d_w, d_bias);
  const auto cx = to_complex(x), cw = to_complex(w), cb = to_complex(bias);
  const auto loss = [&](const std::vector<Complex>& x_in, const std::vector<Complex>& w_in,
                        const std::vector<Complex>& b_in) {
    std::vector<Complex> y(x.size());
    reference::causal_conv_forward<Complex>(size, x_in, w_in, b_in, {}, {}, y, {});
    return test::weighted_sum(d_y, y) + test::weighted_sum(residual, x_in);
  };
  expect_gradient("d_x", d_x, x, [&](const auto& in) { return loss(in, cw, cb); });
  expect_gradient("d_w", d_w, w, [&](const auto& in) { return loss(cx, in, cb); });
  expect_gradient("d_bias", d_bias, bias, [&](const auto& in) { return loss(cx, cw, in); });
}

// With history and residual and without; final_history in place of history; d_w and d_bias from 1, added to twice.
template <typename T>
void CausalConv::compare_with_reference(double tolerance, double wide_tolerance) const {
  using P = ParameterOf<T>;
  const Tensor xt = tensor_of<T>(x_shape, x), wt = tensor_of<P>(w_shape, w);
  const Tensor bt = tensor_of<P>(bias_shape, bias), dt = tensor_of<T>(x_shape, d_y);
  const Values xr = values_of<T>(xt), wr = values_of<P>(wt), br = values_of<P>(bt);
  const Values dr = values_of<T>(dt);
  const Tensor beside = tensor_of<T>(x_shape, residual);
  const Values beside_r = values_of<T>(beside);
  Tensor y(x_shape, kDType<T>), d_x(x_shape, kDType<T>);
  Values y_ref(x.size()), final_ref(history.size()), d_x_ref(x.size());
  Stream stream = test::stream();

  Tensor carried = tensor_of<T>(history_shape, history);
  const Values hr = values_of<T>(carried);
  causal_conv_forward(xt, wt, bt, carried, beside, y, carried, stream);
  reference::causal_conv_forward<double>(size, xr, wr, br, hr, beside_r, y_ref, final_ref);
  expect_close("y", y.span<T>(), y_ref, tolerance);
  EXPECT_EQ(values_of<T>(carried), final_ref);  // copies, no rounding

  Tensor final_history(history_shape, kDType<T>);
  causal_conv_forward(xt, wt, bt, {}, {}, y, final_history, stream);
  reference::causal_conv_forward<double>(size, xr, wr, br, {}, {}, y_ref, final_ref);
  expect_close("y from zeros", y.span<T>(), y_ref, tolerance);
  EXPECT_EQ(values_of<T>(final_history), final_ref);

  Values d_w_ref(w.size(), 1.0), d_bias_ref(bias.size(), 1.0);
  Tensor d_w = tensor_of<P>(w_shape, d_w_ref), d_bias = tensor_of<P>(bias_shape, d_bias_ref);
  for (int call = 0; call < 2; ++call) {
    const TensorView d_beside = call == 0 ? TensorView() : beside;
    causal_conv_backward(xt, wt, dt, d_beside, d_x, d_w, d_bias, stream);
    reference::causal_conv_backward<double>(size, xr, wr, dr,
                                            call == 0 ? Values(x.size(), 0.0) : beside_r, d_x_ref,
                                            d_w_ref, d_bias_ref);
    expect_close("d_x", d_x.span<T>(), d_x_ref, tolerance);
  }
  expect_close("d_w", d_w.span<P>(), d_w_ref, wide_tolerance);
  expect_close("d_bias", d_bias.span<P>(), d_bias_ref, wide_tolerance);
}

TEST_P(CausalConv, DoubleMatchesReference) { compare_with_reference<double>(1e-13, 1e-13); }

// W + 1 roundings of 6e-8 of partial sums that may be a few times the result.
TEST_P(CausalConv, FloatMatchesReference) { compare_with_reference<float>(2e-6, 2e-6); }

#ifdef TTT_TEST_CUDA
// Arithmetic in fp32; activations are rounded to bf16 once: 2^-8.
TEST_P(CausalConv, BFloat16MatchesReference) { compare_with_reference<BFloat16>(4e-3, 2e-6); }
#endif

// Every cut, so that pieces are also shorter than the window.
TEST_P(CausalConv, TwoPiecesWithHistoryEqualOnePass) {
  if (size.batch != 1) return;  // a slice of time is contiguous for one sequence only
  Stream stream;
  const Tensor xt = tensor_of<double>(x_shape, x), wt = tensor_of<double>(w_shape, w);
  const Tensor bt = tensor_of<double>(bias_shape, bias);
  Tensor whole(x_shape, DType::kF64), whole_final(history_shape, DType::kF64);
  causal_conv_forward(xt, wt, bt, {}, {}, whole, whole_final, stream);
  for (std::int64_t cut = 0; cut <= size.tokens; ++cut) {
    Tensor pieces(x_shape, DType::kF64), state(history_shape, DType::kF64);
    const TensorView all = xt.view().reshape({size.tokens, size.channels});
    const TensorView out = pieces.view().reshape({size.tokens, size.channels});
    const Shape first{1, cut, size.channels}, second{1, size.tokens - cut, size.channels};
    causal_conv_forward(all.slice(0, cut).reshape(first), wt, bt, {}, {},
                        out.slice(0, cut).reshape(first), state, stream);
    causal_conv_forward(all.slice(cut, size.tokens).reshape(second), wt, bt, state, {},
                        out.slice(cut, size.tokens).reshape(second), state, stream);
    expect_close("y", pieces.span<double>(), whole.span<double>(), 1e-15);
    EXPECT_EQ(values_of<double>(state), values_of<double>(whole_final)) << "cut at " << cut;
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, CausalConv,
                         ::testing::Values(CausalConvSizes{1, 1, 1, 1}, CausalConvSizes{1, 1, 3, 4},
                                           CausalConvSizes{2, 2, 5, 4},  // T < W - 1
                                           CausalConvSizes{1, 3, 2, 7},
                                           CausalConvSizes{3, 9, 17, 4},
                                           CausalConvSizes{1, 11, 5, 3},
                                           CausalConvSizes{2, 6, 3, 1},
                                           CausalConvSizes{2, 35, 4, 4}));

// Too large for the complex step: several tiles of channels and runs of tokens; windows of more taps than a thread
// holds; more runs than groups of threads, so that a group takes several.
using LargeCausalConv = CausalConv;

TEST_P(LargeCausalConv, FloatMatchesReference) { compare_with_reference<float>(2e-6, 2e-6); }

#ifdef TTT_TEST_CUDA
TEST_P(LargeCausalConv, BFloat16MatchesReference) { compare_with_reference<BFloat16>(4e-3, 2e-6); }
#endif

INSTANTIATE_TEST_SUITE_P(Sizes, LargeCausalConv,
                         ::testing::Values(CausalConvSizes{2, 70, 136, 4},
                                           CausalConvSizes{1, 290, 8, 9},
                                           CausalConvSizes{2, 65, 33, 6},
                                           CausalConvSizes{1100, 3, 2, 4}));

// No tokens: the history is carried over unchanged, in place or not.
TEST(CausalConvHistory, OfFloatsPassesAnEmptyPiece) {
  Stream stream = test::stream();
  const Values past = random_values("history", 2 * 3 * 5);
  Tensor x({2, 0, 5}, DType::kF32), y({2, 0, 5}, DType::kF32), apart({2, 3, 5}, DType::kF32);
  const Tensor w = tensor_of<float>({5, 1, 4}, random_values("w", 20));
  const Tensor bias = tensor_of<float>({5}, random_values("bias", 5));
  Tensor history = tensor_of<float>({2, 3, 5}, past);
  const Values before = values_of<float>(history);
  causal_conv_forward(x, w, bias, history, {}, y, apart, stream);
  causal_conv_forward(x, w, bias, history, {}, y, history, stream);
  EXPECT_EQ(values_of<float>(apart), before);
  EXPECT_EQ(values_of<float>(history), before);
}

TEST(CausalConvThreads, BitsDoNotDependOnTheirNumber) {
  test::expect_same_bits_for_any_thread_count([] {
    Stream stream;
    const Shape x_shape{3, 401, 37}, w_shape{37, 1, 4}, bias_shape{37};
    const Tensor x = tensor_of<float>(x_shape, random_values("x", x_shape.numel()));
    const Tensor d_y = tensor_of<float>(x_shape, random_values("d_y", x_shape.numel()));
    const Tensor w = tensor_of<float>(w_shape, random_values("w", w_shape.numel()));
    const Tensor bias = tensor_of<float>(bias_shape, random_values("bias", 37));
    Tensor y(x_shape, DType::kF32), d_x(x_shape, DType::kF32);
    Tensor d_w = Tensor::zeros(w_shape, DType::kF32);
    Tensor d_bias = Tensor::zeros(bias_shape, DType::kF32);
    causal_conv_forward(x, w, bias, {}, d_y, y, {}, stream);
    causal_conv_backward(x, w, d_y, x, d_x, d_w, d_bias, stream);
    return std::vector<Tensor>{y, d_x, d_w, d_bias};
  });
}

TEST(CausalConvErrors, NameTheArgument) {
  Stream stream;
  Tensor x({1, 5, 2}, DType::kF32), w({2, 1, 4}, DType::kF32), bias({2}, DType::kF32);
  Tensor y({1, 5, 2}, DType::kF32), history({1, 4, 2}, DType::kF32);
  test::expect_error(ExitCode::kInternal, "history has shape [1, 4, 2], expected [1, 3, 2]",
                     [&] { causal_conv_forward(x, w, bias, history, {}, y, {}, stream); });
  test::expect_error(ExitCode::kInternal, "y must not alias x",
                     [&] { causal_conv_forward(x, w, bias, {}, {}, x, {}, stream); });
  test::expect_error(ExitCode::kInternal, "y must not alias x or residual",
                     [&] { causal_conv_forward(x, w, bias, {}, y, y, {}, stream); });
}

}  // namespace
}  // namespace ttt::kernels
