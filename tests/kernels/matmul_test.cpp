#include "kernels/matmul.h"

#include <gmock/gmock.h>
#include <omp.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "kernels/cpu/bf16_gemm.h"
#ifdef TTT_TEST_CUDA
#include "kernels/device_ops.h"
#endif
#include "kernels/reference/matmul.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"
#include "tests/support/tensors.h"

namespace ttt::kernels {
namespace {

using test::expect_close;
using test::expect_gradient;
using test::random_values;
using test::tensor_of;
using test::values_of;
using Complex = std::complex<double>;

struct Sizes {
  std::int64_t rows, inputs, outputs;
};

void PrintTo(const Sizes& s, std::ostream* os) {
  *os << "N" << s.rows << " I" << s.inputs << " O" << s.outputs;
}

struct Products {
  std::vector<double> y, d_x, d_w;
};

struct Case {
  Sizes size;
  std::vector<double> x, w, residual, d_y, d_x_before, d_w_before;

  explicit Case(const Sizes& s)
      : size(s),
        x(random_values("x", s.rows * s.inputs)),
        w(random_values("w", s.outputs * s.inputs)),
        residual(random_values("residual", s.rows * s.outputs)),
        d_y(random_values("d_y", s.rows * s.outputs)),
        d_x_before(random_values("d_x_before", s.rows * s.inputs)),
        d_w_before(random_values("d_w_before", s.outputs * s.inputs)) {}

  [[nodiscard]] Products reference() const {
    Products out{residual, d_x_before, d_w_before};
    reference::linear_forward(x.data(), w.data(), out.y.data(), size.rows, size.inputs,
                              size.outputs);
    reference::linear_backward_input(d_y.data(), w.data(), out.d_x.data(), size.rows, size.inputs,
                                     size.outputs);
    reference::linear_backward_weight(d_y.data(), x.data(), out.d_w.data(), size.rows, size.inputs,
                                      size.outputs);
    return out;
  }

  // Operands as `operand`, results as `result`.
  [[nodiscard]] Products cpu(DType operand, DType result, Precision precision) const {
    Stream stream;
    const Shape x_shape{size.rows, size.inputs};
    const Shape w_shape{size.outputs, size.inputs};
    const Shape y_shape{size.rows, size.outputs};
    const Tensor tx = tensor_of(x, x_shape, operand);
    const Tensor tw = tensor_of(w, w_shape, operand);
    const Tensor tdy = tensor_of(d_y, y_shape, operand);
    const Tensor y(y_shape, result);
    fill(y, std::numeric_limits<double>::quiet_NaN());
    const Tensor d_x = tensor_of(d_x_before, x_shape, result);
    const Tensor d_w = tensor_of(d_w_before, w_shape, result);
    linear_forward(tx, tw, tensor_of(residual, y_shape, result), y, precision, stream);
    linear_backward_input(tdy, tw, d_x, Accumulate::kYes, precision, stream);
    linear_backward_weight(tdy, tx, d_w, precision, stream);
    return {values_of(y), values_of(d_x), values_of(d_w)};
  }
};

std::vector<double> rounded_to_bf16(const std::vector<double>& values) {
  std::vector<double> out;
  for (const double v : values) {
    out.push_back(static_cast<float>(BFloat16(static_cast<float>(v))));
  }
  return out;
}

void expect_products(const Products& actual, const Products& expected, double tolerance) {
  expect_close("y", actual.y, expected.y, tolerance);
  expect_close("d_x", actual.d_x, expected.d_x, tolerance);
  expect_close("d_w", actual.d_w, expected.d_w, tolerance);
}

class Matmul : public testing::TestWithParam<Sizes> {};

TEST_P(Matmul, DoubleEqualsReference) {
  const Case c(GetParam());
  expect_products(c.cpu(DType::kF64, DType::kF64, Precision::kNative), c.reference(), 1e-12);
}

TEST_P(Matmul, FloatEqualsReference) {
  const Case c(GetParam());
  // Rounding of the operands and of a sum of at most 800 terms: sqrt(800) * 2^-24 = 1.7e-6, and some spread.
  expect_products(c.cpu(DType::kF32, DType::kF32, Precision::kNative), c.reference(), 5e-6);
}

TEST_P(Matmul, BFloat16IsTheProductOfRoundedOperands) {
  Case c(GetParam());
  const Products from_f32 = c.cpu(DType::kF32, DType::kF32, Precision::kBF16);
  const Products from_bf16 = c.cpu(DType::kBF16, DType::kF32, Precision::kBF16);
  c.x = rounded_to_bf16(c.x);
  c.w = rounded_to_bf16(c.w);
  c.d_y = rounded_to_bf16(c.d_y);
  // Products of bf16 are exact in fp32; what remains is the rounding of the sums, as above.
  expect_products(from_f32, c.reference(), 5e-6);
  EXPECT_EQ(from_f32.y, from_bf16.y);
  EXPECT_EQ(from_f32.d_x, from_bf16.d_x);
  EXPECT_EQ(from_f32.d_w, from_bf16.d_w);
}

TEST_P(Matmul, BitsDoNotDependOnTheNumberOfThreads) {
  const Case c(GetParam());
  const int threads = omp_get_max_threads();
  for (const Precision precision : {Precision::kNative, Precision::kBF16}) {
    omp_set_num_threads(1);
    const Products one = c.cpu(DType::kF32, DType::kF32, precision);
    for (const int count : {2, 3}) {
      omp_set_num_threads(count);
      const Products many = c.cpu(DType::kF32, DType::kF32, precision);
      EXPECT_EQ(one.y, many.y) << count;
      EXPECT_EQ(one.d_x, many.d_x) << count;
      EXPECT_EQ(one.d_w, many.d_w) << count;
    }
  }
  omp_set_num_threads(threads);
}

INSTANTIATE_TEST_SUITE_P(Sizes, Matmul,
                         testing::Values(Sizes{1, 1, 1}, Sizes{1, 64, 3}, Sizes{7, 5, 1},
                                         Sizes{3, 1, 9}, Sizes{8, 129, 13}, Sizes{4, 768, 30},
                                         Sizes{65, 33, 129}, Sizes{1, 800, 777},
                                         Sizes{515, 97, 391}, Sizes{40, 401, 517}));

// Layers of one input.
struct Stack {
  std::int64_t count;
  Sizes size;
  std::vector<double> x, w, residual;

  Stack(std::int64_t n, const Sizes& s)
      : count(n),
        size(s),
        x(rounded_to_bf16(random_values("x", s.rows * s.inputs))),
        w(rounded_to_bf16(random_values("w", n * s.outputs * s.inputs))),
        residual(random_values("residual", n * s.rows * s.outputs)) {}

  [[nodiscard]] std::vector<double> reference() const {
    std::vector<double> y = residual;
    for (std::int64_t s = 0; s < count; ++s) {
      reference::linear_forward(x.data(), w.data() + s * size.outputs * size.inputs,
                                y.data() + s * size.rows * size.outputs, size.rows, size.inputs,
                                size.outputs);
    }
    return y;
  }
  [[nodiscard]] Tensor run(DType operand, Precision precision, bool together,
                           Stream& stream) const {
    const Tensor tx = tensor_of(x, {size.rows, size.inputs}, operand);
    const Tensor tw = tensor_of(w, {count, size.outputs, size.inputs}, operand);
    const Shape y_shape{count, size.rows, size.outputs};
    const DType result = operand == DType::kF64 ? DType::kF64 : DType::kF32;
    const Tensor added = tensor_of(residual, y_shape, result);
    Tensor y = test::unset(y_shape, result);
    if (together) {
      linear_forward(tx, tw, added, y, precision, stream);
    } else {
      for (std::int64_t s = 0; s < count; ++s) {
        linear_forward(tx, tw.at(s), added.at(s), y.at(s), precision, stream);
      }
    }
    return y;
  }
};

const Stack kStacks[] = {{3, {1, 64, 40}}, {3, {37, 48, 24}}, {1, {9, 16, 8}}, {4, {2, 5, 3}}};

// Operands that are bf16 already: what remains is the rounding of fp32 sums of at most 64 terms, sqrt(64) * 2^-24 = 5e-7,
// and some spread.
TEST(MatmulStack, FloatEqualsReference) {
  Stream stream = test::stream();
  for (const Stack& stack : kStacks) {
    const std::vector<double> expected = stack.reference();
    for (const auto& [operand, precision] : {std::pair(DType::kF32, Precision::kNative),
                                             {DType::kF32, Precision::kBF16},
                                             {DType::kBF16, Precision::kBF16}}) {
      const Tensor y = stack.run(operand, precision, true, stream);
      stream.synchronize();
      expect_close("y", values_of(y), expected, 2e-6);
    }
  }
}

TEST(MatmulStack, BitsAreThoseOfTheProductsOneByOne) {
  Stream stream;
  for (const Stack& stack : kStacks) {
    for (const auto& [operand, precision] : {std::pair(DType::kF64, Precision::kNative),
                                             {DType::kF32, Precision::kNative},
                                             {DType::kF32, Precision::kBF16}}) {
      EXPECT_EQ(values_of(stack.run(operand, precision, true, stream)),
                values_of(stack.run(operand, precision, false, stream)));
    }
  }
}

TEST(MatmulDecode, BitsOfARowDoNotDependOnTheOtherRows) {
  const std::vector<double> x_values = random_values("x", 8 * 75);
  const Tensor x = tensor_of(x_values, {8, 75}, DType::kF32);
  const Tensor w = tensor_of(random_values("w", 23 * 75), {23, 75}, DType::kF32);
  Stream stream;
  const Tensor all({8, 23}, DType::kF32);
  linear_forward(x, w, {}, all, Precision::kNative, stream);
  for (std::int64_t rows = 1; rows < 8; ++rows) {
    const Tensor some({rows, 23}, DType::kF32);
    linear_forward(x.view().slice(8 - rows, 8), w, {}, some, Precision::kNative, stream);
    EXPECT_EQ(values_of(some), values_of(all.view().slice(8 - rows, 8))) << rows;
  }
}

TEST(MatmulReference, GradientsMatchComplexStep) {
  const Sizes s{3, 4, 5};
  const Case c(s);
  Products zero{{}, std::vector<double>(c.x.size()), std::vector<double>(c.w.size())};
  reference::linear_backward_input(c.d_y.data(), c.w.data(), zero.d_x.data(), 3, 4, 5);
  reference::linear_backward_weight(c.d_y.data(), c.x.data(), zero.d_w.data(), 3, 4, 5);
  const auto loss = [&](const std::vector<Complex>& x, const std::vector<Complex>& w) {
    std::vector<Complex> y(c.d_y.size());
    reference::linear_forward(x.data(), w.data(), y.data(), 3, 4, 5);
    Complex sum{};
    for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * c.d_y[i];
    return sum;
  };
  const std::vector<Complex> x(c.x.begin(), c.x.end());
  const std::vector<Complex> w(c.w.begin(), c.w.end());
  expect_gradient("d_x", zero.d_x, c.x, [&](const auto& point) { return loss(point, w); });
  expect_gradient("d_w", zero.d_w, c.w, [&](const auto& point) { return loss(x, point); });
}

// On CPUs without AMX the products above do not come here, but it must be right everywhere.
TEST(BFloat16Gemm, IsTheProductOfRoundedOperands) {
  const std::int64_t m = 33;
  const std::int64_t n = 65;
  const std::int64_t k = 130;
  const std::vector<double> a = rounded_to_bf16(random_values("a", m * k));
  const std::vector<double> b = rounded_to_bf16(random_values("b", n * k));
  const Tensor a_half = tensor_of(a, {m, k}, DType::kBF16);
  const Tensor b_half = tensor_of(b, {n, k}, DType::kBF16);
  std::vector<double> expected(static_cast<std::size_t>(m * n));
  reference::linear_forward(a.data(), b.data(), expected.data(), m, k, n);
  const Tensor c = test::unset({m, n}, DType::kF32);
  for (const bool accumulate : {false, true}) {
    cpu::bf16_gemm(cpu::Op::kNone, cpu::Op::kTranspose, m, n, k, a_half.data<BFloat16>(), k,
                   b_half.data<BFloat16>(), k, accumulate, c.data<float>(), n);
    // Rounding of fp32 sums of 130 terms.
    expect_close("c", values_of(c), expected, 2e-6);
    for (double& value : expected) value *= 2;
  }
}

// OpenBLAS, told to use one thread, tells OpenMP so too: all work after the first product would run on one thread.
TEST(MatmulThreads, TheFirstProductLeavesTheirNumberAlone) {
  // A fresh process, in which no product has run.
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const auto run = [] {
    omp_set_num_threads(3);
    Stream stream;
    const Tensor x = Tensor::zeros({64, 64}, DType::kF32);
    const Tensor y({64, 64}, DType::kF32);
    linear_forward(x, x, {}, y, Precision::kNative, stream);
    std::exit(omp_get_max_threads() == 3 ? 0 : 1);
  };
  EXPECT_EXIT(run(), testing::ExitedWithCode(0), "");
}

#ifdef TTT_TEST_CUDA
// In the types of training: bf16 operands, fp32 gradients of weights. Weights and their gradients begin anywhere in flat
// buffers, at 2 and 4 bytes.
void expect_products_of_views(const Sizes& s, DType result, std::int64_t begin) {
  SCOPED_TRACE(
      fmt::format("{} x {} x {} to {} at {}", s.rows, s.inputs, s.outputs, name_of(result), begin));
  Case c(s);
  for (auto* values : {&c.x, &c.w, &c.d_y, &c.residual, &c.d_x_before}) {
    *values = rounded_to_bf16(*values);
  }
  Stream stream = make_stream(Device::kCuda, 0);
  const std::int64_t count = s.outputs * s.inputs;
  const auto behind = [&](const std::vector<double>& values, DType dtype) {
    std::vector<double> flat(static_cast<std::size_t>(begin), 7.0);
    flat.insert(flat.end(), values.begin(), values.end());
    return tensor_of(flat, {begin + count}, dtype);
  };
  const Tensor flat_w = behind(c.w, DType::kBF16);
  const Tensor flat_d_w = behind(c.d_w_before, DType::kF32);
  const Shape w_shape{s.outputs, s.inputs};
  const TensorView w = flat_w.view().slice(begin, begin + count).reshape(w_shape);
  const TensorView d_w = flat_d_w.view().slice(begin, begin + count).reshape(w_shape);
  const Tensor x = tensor_of(c.x, {s.rows, s.inputs}, DType::kBF16);
  const Tensor d_y = tensor_of(c.d_y, {s.rows, s.outputs}, DType::kBF16);
  const Tensor residual = tensor_of(c.residual, {s.rows, s.outputs}, result);
  const Tensor y = test::unset({s.rows, s.outputs}, result);
  const Tensor d_x = tensor_of(c.d_x_before, {s.rows, s.inputs}, result);
  linear_forward(x, w, residual, y, Precision::kBF16, stream);
  linear_backward_input(d_y, w, d_x, Accumulate::kYes, Precision::kBF16, stream);
  linear_backward_weight(d_y, x, d_w, Precision::kBF16, stream);
  stream.synchronize();
  const Products expected = c.reference();
  // Sums as above; a result in bf16 is rounded once more, by 2^-9.
  const double tolerance = result == DType::kBF16 ? 4e-3 : 5e-6;
  expect_close("y", values_of(y), expected.y, tolerance);
  expect_close("d_x", values_of(d_x), expected.d_x, tolerance);
  expect_close("d_w", values_of(d_w), expected.d_w, 5e-6);
  const std::vector<double> before = values_of(flat_d_w.view().slice(0, begin));
  EXPECT_THAT(before, testing::Each(7.0));
}

TEST(CudaMatmul, ServesOddSizesAndWeightsAtAnyElement) {
  for (const Sizes& s : {Sizes{1, 1, 1}, Sizes{1, 64, 3}, Sizes{7, 5, 259}, Sizes{40, 401, 17},
                         Sizes{65, 96, 128}}) {
    for (const DType result : {DType::kF32, DType::kBF16}) {
      for (const std::int64_t begin : {0, 1, 2, 4, 8}) expect_products_of_views(s, result, begin);
    }
  }
}

TEST(CudaMatmul, Fp32IsNotRoundedToTensorFloat) {
  const Case c({65, 400, 33});
  Stream stream = make_stream(Device::kCuda, 0);
  const Tensor y = tensor_of(c.residual, {65, 33}, DType::kF32);
  const Tensor x = tensor_of(c.x, {65, 400}, DType::kF32);
  const Tensor w = tensor_of(c.w, {33, 400}, DType::kF32);
  linear_forward(x, w, tensor_of(c.residual, {65, 33}, DType::kF32), y, Precision::kNative, stream);
  stream.synchronize();
  expect_close("y", values_of(y), c.reference().y, 5e-6);  // TF32 has a rounding of 5e-4
}
#endif

}  // namespace
}  // namespace ttt::kernels
