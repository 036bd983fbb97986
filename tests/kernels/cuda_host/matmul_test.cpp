// kernels/cuda/matmul.cpp over a cuBLASLt of the tests (tests/support/cublaslt): layouts, types, alignments and errors.
// Needs the toolkit's headers, no device; tensors lie in host memory.

#include "kernels/matmul.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cuda/ops.h"
#include "kernels/reference/matmul.h"
#include "tests/support/complex_step.h"
#include "tests/support/cublaslt/fake_cublaslt.h"
#include "tests/support/tensors.h"

namespace ttt::kernels::cuda {
namespace {

using test::error_of;
using test::expect_close;
using test::num_algorithms_asked;
using test::num_products;
using test::random_values;
using test::tensor_of;
using test::unset;
using test::values_of;

struct Sizes {
  std::int64_t rows, inputs, outputs;
};

struct Types {
  DType operand, result;
  Precision precision;
};

// What the operands are to the library.
std::vector<double> rounded(const std::vector<double>& values, const Types& types) {
  const bool is_bf16 = types.operand == DType::kBF16 || types.precision == Precision::kBF16;
  const Shape shape{static_cast<std::int64_t>(values.size())};
  return values_of(tensor_of(values, shape, is_bf16 ? DType::kBF16 : DType::kF32));
}

std::vector<double> held(const std::vector<double>& values, DType dtype) {
  return values_of(tensor_of(values, {static_cast<std::int64_t>(values.size())}, dtype));
}

void expect_products(const Sizes& s, const Types& types) {
  SCOPED_TRACE(fmt::format("{} x {} x {}, {} to {}", s.rows, s.inputs, s.outputs,
                           name_of(types.operand), name_of(types.result)));
  Stream stream;
  const Shape x_shape{s.rows, s.inputs}, w_shape{s.outputs, s.inputs}, y_shape{s.rows, s.outputs};
  const auto x = rounded(random_values("x", s.rows * s.inputs), types);
  const auto w = rounded(random_values("w", s.outputs * s.inputs), types);
  const auto d_y = rounded(random_values("d_y", s.rows * s.outputs), types);
  std::vector<double> y = held(random_values("residual", s.rows * s.outputs), types.result);
  std::vector<double> d_x = held(random_values("d_x", s.rows * s.inputs), types.result);
  std::vector<double> d_w = held(random_values("d_w", s.outputs * s.inputs), DType::kF32);
  const Tensor tx = tensor_of(x, x_shape, types.operand);
  const Tensor tw = tensor_of(w, w_shape, types.operand);
  const Tensor td_y = tensor_of(d_y, y_shape, types.operand);
  const Tensor residual = tensor_of(y, y_shape, types.result);
  const Tensor ty = unset(y_shape, types.result);
  const Tensor td_x = tensor_of(d_x, x_shape, types.result);
  const Tensor td_w = tensor_of(d_w, w_shape, DType::kF32);
  cuda::linear_forward(tx, tw, residual, ty, types.precision, stream);
  cuda::linear_backward_input(td_y, tw, td_x, Accumulate::kYes, types.precision, stream);
  cuda::linear_backward_weight(td_y, tx, td_w, types.precision, stream);
  reference::linear_forward(x.data(), w.data(), y.data(), s.rows, s.inputs, s.outputs);
  reference::linear_backward_input(d_y.data(), w.data(), d_x.data(), s.rows, s.inputs, s.outputs);
  reference::linear_backward_weight(d_y.data(), x.data(), d_w.data(), s.rows, s.inputs, s.outputs);
  // One rounding of the result: 2^-24, or 2^-9 to bf16.
  const double tolerance = types.result == DType::kBF16 ? 4e-3 : 1e-7;
  expect_close("y", values_of(ty), y, tolerance);
  expect_close("d_x", values_of(td_x), d_x, tolerance);
  expect_close("d_w", values_of(td_w), d_w, 1e-7);
  cuda::linear_forward(tx, tw, {}, ty, types.precision, stream);  // what was there before is gone
  for (double& value : y) value = 0;
  reference::linear_forward(x.data(), w.data(), y.data(), s.rows, s.inputs, s.outputs);
  expect_close("y", values_of(ty), y, tolerance);
}

TEST(CublasLtMatmul, EqualsReferenceInAllTypes) {
  constexpr Types kTypes[] = {{DType::kF32, DType::kF32, Precision::kNative},
                              {DType::kF32, DType::kF32, Precision::kBF16},
                              {DType::kBF16, DType::kF32, Precision::kBF16},
                              {DType::kBF16, DType::kBF16, Precision::kBF16}};
  constexpr Sizes kSizes[] = {{1, 1, 1}, {1, 6, 3}, {7, 5, 1}, {3, 1, 9}, {8, 29, 13}};
  for (const Types& types : kTypes) {
    for (const Sizes& sizes : kSizes) expect_products(sizes, types);
  }
}

// Parameters lie packed in one buffer: a weight may begin at any element.
TEST(CublasLtMatmul, ServesWeightsAtAnyElement) {
  Stream stream;
  const Tensor x = tensor_of(random_values("x", 4 * 6), {4, 6}, DType::kBF16);
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const Tensor flat = tensor_of(random_values("w", 64), {64}, dtype);
    const Precision precision = Precision::kBF16;
    const Tensor d_flat = tensor_of(std::vector<double>(64, 0.0), {64}, DType::kF32);
    for (std::int64_t begin = 0; begin <= 33; ++begin) {
      const TensorView w = flat.view().slice(begin, begin + 30).reshape({5, 6});
      const Tensor apart = tensor_of(values_of(w), {5, 6}, dtype);
      const Tensor y = unset({4, 5}, DType::kBF16);
      const Tensor expected = unset({4, 5}, DType::kBF16);
      cuda::linear_forward(x, w, {}, y, precision, stream);
      cuda::linear_forward(x, apart, {}, expected, precision, stream);
      EXPECT_EQ(values_of(y), values_of(expected)) << begin;
      const TensorView d_w = d_flat.view().slice(begin, begin + 30).reshape({5, 6});
      EXPECT_NO_THROW(cuda::linear_backward_weight(y, x, d_w, precision, stream)) << begin;
    }
  }
}

// Layers of one input: one product, whose weights may begin at any element.
TEST(CublasLtMatmul, AStackIsTheProductsOneByOne) {
  Stream stream;
  constexpr Types kTypes[] = {{DType::kF32, DType::kF32, Precision::kNative},
                              {DType::kF32, DType::kF32, Precision::kBF16},
                              {DType::kBF16, DType::kF32, Precision::kBF16},
                              {DType::kBF16, DType::kBF16, Precision::kBF16}};
  for (const Types& types : kTypes) {
    for (const std::int64_t outputs : {1, 5, 8}) {
      const Tensor x = tensor_of(random_values("x", 4 * 6), {4, 6}, types.operand);
      const Tensor flat = tensor_of(random_values("w", 200), {200}, types.operand);
      const Shape shape{3, 4, outputs};
      const Tensor residual = tensor_of(random_values("r", shape.numel()), shape, types.result);
      for (const std::int64_t begin : {0, 1, 3, 8}) {
        const TensorView w =
            flat.view().slice(begin, begin + 3 * outputs * 6).reshape({3, outputs, 6});
        for (const bool adds : {false, true}) {
          const Tensor y = unset(shape, types.result);
          const Tensor expected = unset(shape, types.result);
          const int before = num_products();
          cuda::linear_forward(x, w, adds ? residual.view() : TensorView(), y, types.precision,
                               stream);
          EXPECT_EQ(num_products(), before + 1);
          for (std::int64_t s = 0; s < 3; ++s) {
            cuda::linear_forward(x, w.at(s), adds ? residual.view().at(s) : TensorView(),
                                 expected.view().at(s), types.precision, stream);
          }
          EXPECT_EQ(values_of(y), values_of(expected)) << outputs << " from " << begin;
        }
      }
    }
  }
}

TEST(CublasLtMatmul, EqualCallsShareAnAlgorithm) {
  Stream stream;
  const Tensor x = Tensor::zeros({3, 11}, DType::kF32);
  const Tensor w = Tensor::zeros({2, 11}, DType::kF32);
  const Tensor y({3, 2}, DType::kF32);
  cuda::linear_forward(x, w, {}, y, Precision::kNative, stream);
  const int before = num_algorithms_asked();
  cuda::linear_forward(x, w, {}, y, Precision::kNative, stream);
  EXPECT_EQ(num_algorithms_asked(), before);
  cuda::linear_forward(x.view().slice(0, 2), w, {}, y.view().slice(0, 2), Precision::kNative,
                       stream);
  EXPECT_EQ(num_algorithms_asked(), before + 1);
}

TEST(CublasLtMatmul, NoRowsLeaveTheWeightGradientAlone) {
  Stream stream;
  const Tensor d_w = tensor_of({5, 6}, {1, 2}, DType::kF32);
  cuda::linear_backward_weight(Tensor({0, 1}, DType::kF32), Tensor({0, 2}, DType::kF32), d_w,
                               Precision::kNative, stream);
  EXPECT_THAT(values_of(d_w), testing::ElementsAre(5, 6));
}

TEST(CublasLtMatmul, FailuresAreTold) {
  Stream stream;
  const Tensor x = Tensor::zeros({3, 4}, DType::kF32);
  const Tensor y({3, 3}, DType::kF32);
  const auto product = [&](const Tensor& to) {
    cuda::linear_forward(x, x, {}, to, Precision::kNative, stream);
  };
  ExitCode code = ExitCode::kOk;
  EXPECT_THAT(error_of(
                  [&] {
                    product(Tensor({3, 3}, DType::kBF16));
                  },
                  &code),
              testing::HasSubstr("3 x 3 x 4 of F32 to BF16"));
  EXPECT_EQ(code, ExitCode::kInternal);
  test::set_next_failure(CUBLAS_STATUS_ALLOC_FAILED, cudaSuccess);
  EXPECT_EQ(error_of([&] { product(y); }, &code),
            "cuBLASLt, a product: no memory (CUDA: no error)");
  EXPECT_EQ(code, ExitCode::kOutOfMemory);
  test::set_next_failure(CUBLAS_STATUS_EXECUTION_FAILED, cudaErrorIllegalAddress);
  EXPECT_EQ(error_of([&] { product(y); }, &code),
            "cuBLASLt, a product: a failure (CUDA: an illegal memory access was encountered)");
  EXPECT_EQ(code, ExitCode::kInternal);
  test::set_next_failure(CUBLAS_STATUS_EXECUTION_FAILED, cudaErrorECCUncorrectable);
  EXPECT_EQ(error_of([&] { product(y); }, &code),
            "cuBLASLt, a product: a failure (CUDA: uncorrectable ECC error encountered)");
  EXPECT_EQ(code, ExitCode::kPeerLost);
  EXPECT_EQ(error_of([&] { product(y); }), "");
}

}  // namespace
}  // namespace ttt::kernels::cuda
