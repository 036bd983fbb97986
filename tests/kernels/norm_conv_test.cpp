#include "kernels/norm_conv.h"

#include <gtest/gtest.h>

#include "kernels/reference/norm_conv.h"
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

constexpr double kEpsilon = 1e-2;  // large enough that another value would be seen

class NormConv : public ::testing::TestWithParam<CausalConvSizes> {
 protected:
  CausalConvSizes size = GetParam();
  Shape shape{size.batch, size.tokens, size.channels};
  Shape w_shape{size.channels, 1, size.window};
  Shape row_shape{size.channels};
  Shape history_shape{size.batch, size.window - 1, size.channels};
  Values x = random_values("x", shape.numel());
  Values norm_w = random_values("norm_w", size.channels);
  Values w = random_values("w", w_shape.numel());
  Values bias = random_values("bias", size.channels);
  Values history = random_values("history", history_shape.numel());
  Values d_y = random_values("d_y", shape.numel());

  // Outputs of type T within `tolerance` of the reference, parameters' gradients within `wide_tolerance`.
  template <typename T>
  void compare_with_reference(double tolerance, double wide_tolerance) const;
};

TEST_P(NormConv, ReferenceBackwardMatchesComplexStep) {
  Values d_x(x.size()), d_norm_w(norm_w.size(), 0.0), d_w(w.size(), 0.0), d_bias(bias.size(), 0.0);
  reference::norm_conv_backward<double>(size, kEpsilon, x, norm_w, w, d_y, d_x, d_norm_w, d_w,
                                        d_bias);
  const auto cx = to_complex(x), cn = to_complex(norm_w), cw = to_complex(w), cb = to_complex(bias);
  using In = std::vector<Complex>;
  const auto loss = [&](const In& x_in, const In& norm_in, const In& w_in, const In& b_in) {
    In y(x.size());
    reference::norm_conv_forward<Complex>(size, kEpsilon, x_in, norm_in, w_in, b_in, {}, y, {});
    return test::weighted_sum(d_y, y);
  };
  test::expect_gradient("d_x", d_x, x, [&](const In& in) { return loss(in, cn, cw, cb); });
  test::expect_gradient("d_norm_w", d_norm_w, norm_w,
                        [&](const In& in) { return loss(cx, in, cw, cb); });
  test::expect_gradient("d_w", d_w, w, [&](const In& in) { return loss(cx, cn, in, cb); });
  test::expect_gradient("d_bias", d_bias, bias, [&](const In& in) { return loss(cx, cn, cw, in); });
}

// With history, whose place final_history takes, and without; parameters' gradients from 1, added to twice.
template <typename T>
void NormConv::compare_with_reference(double tolerance, double wide_tolerance) const {
  using P = ParameterOf<T>;
  const Tensor xt = tensor_of<T>(shape, x), nt = tensor_of<P>(row_shape, norm_w);
  const Tensor wt = tensor_of<P>(w_shape, w), bt = tensor_of<P>(row_shape, bias);
  const Tensor dt = tensor_of<T>(shape, d_y), carried = tensor_of<T>(history_shape, history);
  const Values xr = values_of<T>(xt), nr = values_of<P>(nt), wr = values_of<P>(wt);
  const Values br = values_of<P>(bt), dr = values_of<T>(dt), hr = values_of<T>(carried);
  Tensor y(shape, kDType<T>), d_x(shape, kDType<T>);
  Values y_ref(x.size()), final_ref(history.size()), d_x_ref(x.size());
  Stream stream = test::stream();
  for (const bool has_history : {true, false}) {
    norm_conv_forward(xt, nt, wt, bt, has_history ? carried.view() : TensorView(), y, carried,
                      kEpsilon, stream);
    reference::norm_conv_forward<double>(size, kEpsilon, xr, nr, wr, br,
                                         has_history ? hr : Values{}, y_ref, final_ref);
    expect_close(has_history ? "y" : "y from zeros", y.span<T>(), y_ref, tolerance);
    EXPECT_EQ(values_of<T>(carried), final_ref);  // copies, no rounding
  }
  Values d_n_ref(norm_w.size(), 1.0), d_w_ref(w.size(), 1.0), d_b_ref(bias.size(), 1.0);
  Tensor d_n = tensor_of<P>(row_shape, d_n_ref), d_w = tensor_of<P>(w_shape, d_w_ref);
  Tensor d_b = tensor_of<P>(row_shape, d_b_ref);
  for (int call = 0; call < 2; ++call) {
    norm_conv_backward(xt, nt, wt, dt, d_x, d_n, d_w, d_b, kEpsilon, stream);
    reference::norm_conv_backward<double>(size, kEpsilon, xr, nr, wr, dr, d_x_ref, d_n_ref, d_w_ref,
                                          d_b_ref);
  }
  expect_close("d_x", d_x.span<T>(), d_x_ref, tolerance);
  expect_close("d_norm_w", d_n.span<P>(), d_n_ref, wide_tolerance);
  expect_close("d_w", d_w.span<P>(), d_w_ref, wide_tolerance);
  expect_close("d_bias", d_b.span<P>(), d_b_ref, wide_tolerance);
}

TEST_P(NormConv, DoubleMatchesReference) { compare_with_reference<double>(1e-12, 1e-12); }

// Some tens of roundings of 6e-8, of partial sums that may be a few times the result.
TEST_P(NormConv, FloatMatchesReference) { compare_with_reference<float>(5e-6, 5e-6); }

#ifdef TTT_TEST_CUDA
// Arithmetic in fp32. In one pass activations are rounded to bf16 once, 2^-8; a norm and a convolution round the normed
// rows and their gradient as well, and what they are part of may be a few times as large as the sum.
TEST_P(NormConv, BFloat16MatchesReference) {
  const bool is_one_pass = size.window <= 4 && size.channels % 4 == 0 && size.channels <= 2048;
  compare_with_reference<BFloat16>(is_one_pass ? 4e-3 : 2e-2, is_one_pass ? 5e-6 : 2e-2);
}
#endif

// Also less tokens than the window, no multiple of four channels, runs of 16 tokens with a short last one, and blocks of
// several warps whose last threads have no channels.
INSTANTIATE_TEST_SUITE_P(Sizes, NormConv,
                         ::testing::Values(CausalConvSizes{1, 1, 1, 1}, CausalConvSizes{1, 1, 4, 4},
                                           CausalConvSizes{2, 2, 8, 4}, CausalConvSizes{1, 3, 2, 7},
                                           CausalConvSizes{3, 9, 12, 3},
                                           CausalConvSizes{2, 6, 3, 1},
                                           CausalConvSizes{2, 35, 4, 4}));

using LargeNormConv = NormConv;

TEST_P(LargeNormConv, FloatMatchesReference) { compare_with_reference<float>(5e-6, 5e-6); }

#ifdef TTT_TEST_CUDA
TEST_P(LargeNormConv, BFloat16MatchesReference) { compare_with_reference<BFloat16>(4e-3, 5e-6); }
#endif

// The second: more runs of tokens than blocks of backward, so that a block takes several.
INSTANTIATE_TEST_SUITE_P(Sizes, LargeNormConv,
                         ::testing::Values(CausalConvSizes{2, 53, 272, 4},
                                           CausalConvSizes{300, 3, 4, 4},
                                           CausalConvSizes{1, 5, 2048, 4}));

// Every cut, so that pieces are also shorter than the window.
TEST(NormConvPieces, OfFloatsWithHistoryEqualOnePass) {
  constexpr std::int64_t kTokens = 9, kChannels = 8, kWindow = 4;
  Stream stream = test::stream();
  const auto of = [](const char* name, const Shape& shape) {
    return tensor_of<float>(shape, random_values(name, shape.numel()));
  };
  const Shape shape{1, kTokens, kChannels};
  const Tensor x = of("x", shape), norm_w = of("norm_w", {kChannels});
  const Tensor w = of("w", {kChannels, 1, kWindow}), bias = of("bias", {kChannels});
  const auto run = [&](std::int64_t begin, std::int64_t end, TensorView history, TensorView y,
                       TensorView final_history) {
    const auto piece = [&](TensorView view) {
      return view.reshape({kTokens, kChannels})
          .slice(begin, end)
          .reshape({1, end - begin, kChannels});
    };
    norm_conv_forward(piece(x), norm_w, w, bias, history, piece(y), final_history, kEpsilon,
                      stream);
  };
  Tensor y(shape, DType::kF32), history({1, kWindow - 1, kChannels}, DType::kF32);
  run(0, kTokens, {}, y, {});
  for (std::int64_t cut = 1; cut < kTokens; ++cut) {
    Tensor pieces(shape, DType::kF32);
    run(0, cut, {}, pieces, history);
    run(cut, kTokens, history, pieces, history);
    EXPECT_EQ(values_of<float>(pieces), values_of<float>(y)) << "cut at " << cut;
  }
}

TEST(NormConvThreads, BitsDoNotDependOnTheirNumber) {
  test::expect_same_bits_for_any_thread_count([] {
    Stream stream;
    const Shape shape{3, 401, 37}, w_shape{37, 1, 4}, row_shape{37};
    const auto of = [](const char* name, const Shape& any) {
      return tensor_of<float>(any, random_values(name, any.numel()));
    };
    const Tensor x = of("x", shape), d_y = of("d_y", shape), norm_w = of("norm_w", row_shape);
    const Tensor w = of("w", w_shape), bias = of("bias", row_shape);
    const Tensor y(shape, DType::kF32), d_x(shape, DType::kF32);
    const Tensor d_norm_w = Tensor::zeros(row_shape, DType::kF32);
    const Tensor d_w = Tensor::zeros(w_shape, DType::kF32);
    const Tensor d_bias = Tensor::zeros(row_shape, DType::kF32);
    norm_conv_forward(x, norm_w, w, bias, {}, y, {}, kEpsilon, stream);
    norm_conv_backward(x, norm_w, w, d_y, d_x, d_norm_w, d_w, d_bias, kEpsilon, stream);
    return std::vector<Tensor>{y, d_x, d_norm_w, d_w, d_bias};
  });
}

TEST(NormConvErrors, NameTheArgument) {
  Stream stream;
  Tensor x({1, 5, 2}, DType::kF32), w({2, 1, 4}, DType::kF32), row({2}, DType::kF32);
  Tensor y({1, 5, 2}, DType::kF32), history({1, 4, 2}, DType::kF32);
  test::expect_error(ExitCode::kInternal, "history has shape [1, 4, 2], expected [1, 3, 2]",
                     [&] { norm_conv_forward(x, row, w, row, history, y, {}, kEpsilon, stream); });
  test::expect_error(ExitCode::kInternal, "y must not alias x",
                     [&] { norm_conv_forward(x, row, w, row, {}, x, {}, kEpsilon, stream); });
  test::expect_error(ExitCode::kInternal, "d_x must not alias d_y",
                     [&] { norm_conv_backward(x, row, w, y, y, row, w, row, kEpsilon, stream); });
}

}  // namespace
}  // namespace ttt::kernels
