#include "kernels/norm.h"

#include <gtest/gtest.h>

#include "kernels/reference/norm.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"

namespace ttt::kernels {
namespace {

using test::Complex;
using test::expect_close;
using test::expect_gradient;
using test::ParameterOf;
using test::random_values;
using test::tensor_of;
using test::to_complex;
using test::values_of;
using test::weighted_sum;
using Values = std::vector<double>;

constexpr double kEpsilon = 1e-6;

struct Sizes {
  std::int64_t rows, channels;
};

// How far activations of type T may be from the reference, and how far parameters' gradients and statistics.
struct Tolerance {
  double activation, wide;
};

class Norm : public ::testing::TestWithParam<Sizes> {
 protected:
  std::int64_t rows = GetParam().rows;
  std::int64_t channels = GetParam().channels;
  std::size_t num_rows = static_cast<std::size_t>(rows);
  std::size_t num_channels = static_cast<std::size_t>(channels);
  Values x = random_values("x", rows* channels);
  Values w = random_values("w", channels);
  Values b = random_values("b", channels);
  Values d_y = random_values("d_y", rows* channels);
  Values gate = random_values("gate", rows* channels);
  Values d_beside = random_values("d_beside", rows* channels);

  template <typename T>
  void compare_with_reference(const Tolerance& tolerance) const;
};

TEST_P(Norm, RmsReferenceBackwardMatchesComplexStep) {
  Values y(x.size()), rstd(num_rows), d_x(x.size()), d_w(num_channels, 0.0);
  reference::rms_norm_forward<double>(x, w, y, rstd, kEpsilon);
  reference::rms_norm_backward<double>(x, w, rstd, d_y, d_beside, d_x, d_w);
  const auto loss = [&](const std::vector<Complex>& x_in, const std::vector<Complex>& w_in) {
    std::vector<Complex> y_out(x.size()), rstd_out(num_rows);
    reference::rms_norm_forward<Complex>(x_in, w_in, y_out, rstd_out, kEpsilon);
    return weighted_sum(d_y, y_out) + weighted_sum(d_beside, x_in);
  };
  expect_gradient("d_x", d_x, x, [&](const auto& in) { return loss(in, to_complex(w)); });
  expect_gradient("d_w", d_w, w, [&](const auto& in) { return loss(to_complex(x), in); });
}

TEST_P(Norm, LayerReferenceBackwardMatchesComplexStep) {
  for (const bool gated : {false, true}) {
    const Values g = gated ? gate : Values();
    Values y(x.size()), mean(num_rows), rstd(num_rows), d_x(x.size()), d_gate(g.size());
    Values d_w(num_channels, 0.0), d_b(num_channels, 0.0);
    reference::layer_norm_forward<double>(x, w, b, g, y, mean, rstd, kEpsilon);
    reference::layer_norm_backward<double>(x, w, b, g, mean, rstd, d_y, d_x, d_gate, d_w, d_b);
    const auto loss = [&](const std::vector<Complex>& x_in, const std::vector<Complex>& w_in,
                          const std::vector<Complex>& b_in, const std::vector<Complex>& g_in) {
      std::vector<Complex> y_out(x.size()), mean_out(num_rows), rstd_out(num_rows);
      reference::layer_norm_forward<Complex>(x_in, w_in, b_in, g_in, y_out, mean_out, rstd_out,
                                             kEpsilon);
      return weighted_sum(d_y, y_out);
    };
    const auto cx = to_complex(x), cw = to_complex(w), cb = to_complex(b), cg = to_complex(g);
    expect_gradient("d_x", d_x, x, [&](const auto& in) { return loss(in, cw, cb, cg); });
    expect_gradient("d_w", d_w, w, [&](const auto& in) { return loss(cx, in, cb, cg); });
    expect_gradient("d_b", d_b, b, [&](const auto& in) { return loss(cx, cw, in, cg); });
    expect_gradient("d_gate", d_gate, g, [&](const auto& in) { return loss(cx, cw, cb, in); });
  }
}

// The norms of one type against the reference, on the same rounded inputs. Gradients of parameters start at 1 and
// backward runs twice, which shows that they are added to.
template <typename T>
class NormCheck {
 public:
  using P = ParameterOf<T>;

  NormCheck(const Sizes& size, const Tolerance& tolerance)
      : size_(size),
        tolerance_(tolerance),
        mean(Shape{size.rows}, kDType<P>),
        rstd(Shape{size.rows}, kDType<P>) {}

  void rms(const Values& x_in, const Values& w_in, const Values& d_y_in,
           const Values& d_beside_in) {
    const Tensor x = of_rows(x_in), w = of_channels(w_in), y = of_rows(x_in);
    const Values xr = values_of<T>(x), wr = values_of<P>(w);
    rms_norm_forward(x, w, y, rstd, kEpsilon, stream);
    Values y_ref(xr.size()), rstd_ref(rows()), d_x_ref(xr.size()), d_w_ref(wr.size(), 1.0);
    reference::rms_norm_forward<double>(xr, wr, y_ref, rstd_ref, kEpsilon);
    expect_close("y", y.span<T>(), y_ref, tolerance_.activation);
    expect_close("rstd", rstd.span<P>(), rstd_ref, tolerance_.wide);
    const Tensor d_w = of_channels(d_w_ref);
    for (const bool over_d_y : {false, true}) {  // d_x may be written over either
      const Tensor d_y = of_rows(d_y_in), d_beside = of_rows(d_beside_in);
      const Values dr = values_of<T>(d_y), beside_r = values_of<T>(d_beside);
      const Tensor& d_x = over_d_y ? d_y : d_beside;
      rms_norm_backward(x, w, rstd, d_y, d_beside, d_x, d_w, stream);
      reference::rms_norm_backward<double>(xr, wr, rstd_ref, dr, beside_r, d_x_ref, d_w_ref);
      expect_d_x(d_x, d_x_ref);
    }
    expect_close("d_w", d_w.span<P>(), d_w_ref, tolerance_.wide);
  }

  /// Without values for the gate there is none.
  void layer(const Values& x_in, const Values& w_in, const Values& b_in, const Values& gate_in,
             const Values& d_y_in) {
    const Tensor x = of_rows(x_in), w = of_channels(w_in), b = of_channels(b_in);
    const Tensor gate = gate_in.empty() ? Tensor() : of_rows(gate_in);
    const Values xr = values_of<T>(x), wr = values_of<P>(w), br = values_of<P>(b);
    const Values gr = gate.empty() ? Values() : values_of<T>(gate);
    const Tensor y = of_rows(x_in), y_again = of_rows(x_in);
    layer_norm_forward(x, w, b, gate, y, mean, rstd, kEpsilon, stream);
    Values y_ref(xr.size()), mean_ref(rows()), rstd_ref(rows());
    reference::layer_norm_forward<double>(xr, wr, br, gr, y_ref, mean_ref, rstd_ref, kEpsilon);
    expect_close("y", y.span<T>(), y_ref, tolerance_.activation);
    expect_close("mean", mean.span<P>(), mean_ref, tolerance_.wide);
    expect_close("rstd", rstd.span<P>(), rstd_ref, tolerance_.wide);
    Values d_w_ref(wr.size(), 1.0), d_b_ref(wr.size(), 1.0), d_x_ref(xr.size()),
        d_gate_ref(gr.size());
    const Tensor d_w = of_channels(d_w_ref), d_b = of_channels(d_b_ref);
    for (const bool over_d_y : {false, true}) {
      const Tensor d_y = of_rows(d_y_in), apart = of_rows(d_y_in);
      const Values dr = values_of<T>(d_y);
      const Tensor& d_x = over_d_y ? d_y : apart;
      const Tensor d_gate = gate_in.empty() ? Tensor() : of_rows(gate_in);
      layer_norm_backward(x, w, b, gate, mean, rstd, d_y, y_again, d_x, d_gate, d_w, d_b, stream);
      reference::layer_norm_backward<double>(xr, wr, br, gr, mean_ref, rstd_ref, dr, d_x_ref,
                                             d_gate_ref, d_w_ref, d_b_ref);
      expect_d_x(d_x, d_x_ref);
      expect_close("y again", y_again.span<T>(), y_ref, tolerance_.activation);
      if (!gate.empty()) {
        expect_close("d_gate", d_gate.span<T>(), d_gate_ref, tolerance_.activation);
      }
    }
    expect_close("d_w", d_w.span<P>(), d_w_ref, tolerance_.wide);
    expect_close("d_b", d_b.span<P>(), d_b_ref, tolerance_.wide);
  }

 private:
  [[nodiscard]] std::size_t rows() const { return static_cast<std::size_t>(size_.rows); }
  [[nodiscard]] Tensor of_rows(const Values& values) const {
    return tensor_of<T>({size_.rows, size_.channels}, values);
  }
  [[nodiscard]] Tensor of_channels(const Values& values) const {
    return tensor_of<P>({size_.channels}, values);
  }
  // One channel's d_x is a difference of equal numbers (0 but for epsilon): compare to the scale of its terms.
  void expect_d_x(const Tensor& d_x, const Values& expected) const {
    if (size_.channels > 1) expect_close("d_x", d_x.span<T>(), expected, tolerance_.activation);
  }

  Sizes size_;
  Tolerance tolerance_;
  Tensor mean, rstd;
  Stream stream = test::stream();
};

template <typename T>
void Norm::compare_with_reference(const Tolerance& tolerance) const {
  NormCheck<T> check(GetParam(), tolerance);
  check.rms(x, w, d_y, d_beside);
  check.layer(x, w, b, {}, d_y);
  check.layer(x, w, b, gate, d_y);
}

TEST_P(Norm, DoubleMatchesReference) { compare_with_reference<double>({1e-13, 1e-13}); }

// Some ten roundings of 6e-8 an element; row statistics and sums over rows are double on the CPU, and on CUDA fp32 in a
// tree or in blocks.
constexpr Tolerance kFloat{3e-6, 3e-6};

TEST_P(Norm, FloatMatchesReference) { compare_with_reference<float>(kFloat); }

#ifdef TTT_TEST_CUDA
// Arithmetic in fp32; activations are rounded to bf16 once: 2^-8.
constexpr Tolerance kBFloat16{4e-3, 3e-6};

TEST_P(Norm, BFloat16MatchesReference) { compare_with_reference<BFloat16>(kBFloat16); }
#endif

INSTANTIATE_TEST_SUITE_P(Sizes, Norm,
                         ::testing::Values(Sizes{1, 1}, Sizes{1, 7}, Sizes{5, 1}, Sizes{3, 13},
                                           Sizes{67, 9}, Sizes{9, 40}));

// Too large for the complex step: several warps a row; rows wider than a block's threads hold, in chunks and not; more
// rows than blocks.
using LargeNorm = Norm;

TEST_P(LargeNorm, FloatMatchesReference) { compare_with_reference<float>(kFloat); }

#ifdef TTT_TEST_CUDA
TEST_P(LargeNorm, BFloat16MatchesReference) { compare_with_reference<BFloat16>(kBFloat16); }
#endif

INSTANTIATE_TEST_SUITE_P(Sizes, LargeNorm,
                         ::testing::Values(Sizes{70, 264}, Sizes{20, 771}, Sizes{19, 4104},
                                           Sizes{10, 4099}, Sizes{4500, 3}));

// Rows of whole chunks in memory that begins between two of them.
TEST(NormAlignment, FloatRowsMayBeginAnywhere) {
  Stream stream = test::stream();
  const Shape matrix{3, 16};
  const Tensor x_data = tensor_of<float>({49}, random_values("x", 49));
  const Tensor w_data = tensor_of<float>({17}, random_values("w", 17));
  Tensor y({49}, DType::kF32), rstd({3}, DType::kF32), d_x({49}, DType::kF32);
  Tensor d_w = tensor_of<float>({17}, Values(17, 0.0));
  const auto from_second = [](const Tensor& all, const Shape& shape) {
    return all.view().slice(1, all.size(0)).reshape(shape);
  };
  const TensorView x = from_second(x_data, matrix), w = from_second(w_data, {16});
  rms_norm_forward(x, w, from_second(y, matrix), rstd, kEpsilon, stream);
  rms_norm_backward(x, w, rstd, x, {}, from_second(d_x, matrix), from_second(d_w, {16}), stream);
  const auto values = [](TensorView view) {
    return Values(view.span<float>().begin(), view.span<float>().end());
  };
  Values y_ref(48), rstd_ref(3), d_x_ref(48), d_w_ref(16, 0.0);
  reference::rms_norm_forward<double>(values(x), values(w), y_ref, rstd_ref, kEpsilon);
  reference::rms_norm_backward<double>(values(x), values(w), rstd_ref, values(x), Values(48, 0.0),
                                       d_x_ref, d_w_ref);
  expect_close("y", from_second(y, matrix).span<float>(), y_ref, kFloat.activation);
  expect_close("d_x", from_second(d_x, matrix).span<float>(), d_x_ref, kFloat.activation);
  expect_close("d_w", from_second(d_w, {16}).span<float>(), d_w_ref, kFloat.wide);
}

TEST(NormStatistics, OfFloatsMayBeLeftOut) {
  Stream stream = test::stream();
  const Tensor x = tensor_of<float>({3, 5}, random_values("x", 15));
  const Tensor w = tensor_of<float>({5}, random_values("w", 5));
  Tensor with({3, 5}, DType::kF32), without({3, 5}, DType::kF32);
  Tensor mean({3}, DType::kF32), rstd({3}, DType::kF32);
  rms_norm_forward(x, w, with, rstd, kEpsilon, stream);
  rms_norm_forward(x, w, without, {}, kEpsilon, stream);
  EXPECT_EQ(values_of<float>(with), values_of<float>(without));
  layer_norm_forward(x, w, w, {}, with, mean, rstd, kEpsilon, stream);
  layer_norm_forward(x, w, w, {}, without, {}, {}, kEpsilon, stream);
  EXPECT_EQ(values_of<float>(with), values_of<float>(without));
}

// A mean of 1e5 against a deviation of 1 would lose 10 of 7 digits in E[x^2] - E[x]^2 of float.
TEST(NormStatistics, FloatVarianceSurvivesALargeMean) {
  Values shifted = random_values("x", 2 * 257);
  for (double& value : shifted) value += 1e5;
  const Tensor x = tensor_of<float>({2, 257}, shifted);
  const Tensor w = tensor_of<float>({257}, Values(257, 1.0));
  const Tensor b = tensor_of<float>({257}, Values(257, 0.0));
  Tensor y({2, 257}, DType::kF32), rstd({2}, DType::kF32);
  Stream stream = test::stream();
  layer_norm_forward(x, w, b, {}, y, {}, rstd, kEpsilon, stream);
  Values y_ref(2 * 257), mean_ref(2), rstd_ref(2);
  reference::layer_norm_forward<double>(values_of<float>(x), values_of<float>(w),
                                        values_of<float>(b), {}, y_ref, mean_ref, rstd_ref,
                                        kEpsilon);
  expect_close("rstd", rstd.span<float>(), rstd_ref, 1e-6);
  expect_close("y", y.span<float>(), y_ref, 2e-3);  // the mean itself is rounded to 1e5 * 6e-8
}

template <typename T>
std::vector<Tensor> all_outputs(std::int64_t rows, std::int64_t channels) {
  Stream stream;
  const Tensor x = tensor_of<T>({rows, channels}, random_values("x", rows * channels));
  const Tensor w = tensor_of<T>({channels}, random_values("w", channels));
  const Tensor d_y = tensor_of<T>({rows, channels}, random_values("d_y", rows * channels));
  std::vector<Tensor> out;
  for (int i = 0; i < 4; ++i) out.emplace_back(Shape{rows, channels}, kDType<T>);
  for (int i = 0; i < 3; ++i) out.emplace_back(Shape{rows}, kDType<T>);
  for (int i = 0; i < 3; ++i) out.push_back(Tensor::zeros(Shape{channels}, kDType<T>));
  rms_norm_forward(x, w, out[0], out[4], kEpsilon, stream);
  rms_norm_backward(x, w, out[4], d_y, x, out[1], out[7], stream);
  out.emplace_back(Shape{rows, channels}, kDType<T>);
  layer_norm_forward(x, w, w, d_y, out[2], out[5], out[6], kEpsilon, stream);
  layer_norm_backward(x, w, w, d_y, out[5], out[6], d_y, out[2], out[3], out[10], out[8], out[9],
                      stream);
  return out;
}

TEST(NormThreads, BitsDoNotDependOnTheirNumber) {
  test::expect_same_bits_for_any_thread_count([] { return all_outputs<float>(2501, 37); });
  test::expect_same_bits_for_any_thread_count([] { return all_outputs<double>(331, 65); });
}

TEST(NormErrors, NameTheArgument) {
  Stream stream;
  Tensor x({2, 3}, DType::kF32), w({4}, DType::kF32), y({2, 3}, DType::kF32);
  test::expect_error(ExitCode::kInternal, "w has shape [4], expected [3]",
                     [&] { rms_norm_forward(x, w, y, {}, kEpsilon, stream); });
  Tensor half({2, 3}, DType::kBF16), w3({3}, DType::kF32);
  test::expect_error(ExitCode::kInternal, "F32 or F64 needed, not BF16",
                     [&] { rms_norm_forward(half, w3, y, {}, kEpsilon, stream); });
  Tensor y64({2, 3}, DType::kF64);
  test::expect_error(ExitCode::kInternal, "of F64 read as F32",
                     [&] { layer_norm_forward(x, w3, w3, {}, y64, {}, {}, kEpsilon, stream); });
}

}  // namespace
}  // namespace ttt::kernels
