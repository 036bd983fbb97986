// What kernels/matmul.h promises besides the products: sums, empty operands, memory, and what a wrong call says.

#include <gmock/gmock.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "kernels/matmul.h"
#include "tests/support/kernel_check.h"
#include "tests/support/tensors.h"

namespace ttt::kernels {
namespace {

using test::random_values;
using test::tensor_of;
using test::values_of;

TEST(MatmulContract, AccumulateNoOverwrites) {
  Stream stream;
  const Tensor d_y = tensor_of({2}, {1, 1}, DType::kF32);
  const Tensor w = tensor_of({3, 4}, {1, 2}, DType::kF32);
  const Tensor d_x = tensor_of({100, 100}, {1, 2}, DType::kF32);
  for (const Precision precision : {Precision::kNative, Precision::kBF16}) {
    linear_backward_input(d_y, w, d_x, Accumulate::kNo, precision, stream);
    EXPECT_THAT(values_of(d_x), testing::ElementsAre(6, 8));
    linear_backward_input(d_y, w, d_x, Accumulate::kYes, precision, stream);
    EXPECT_THAT(values_of(d_x), testing::ElementsAre(12, 16));
  }
}

TEST(MatmulContract, TheResidualIsAddedToTheProduct) {
  Stream stream;
  for (const std::int64_t rows : {3, 40}) {  // with few rows another kernel
    const Tensor x = tensor_of(random_values("x", rows * 70), {rows, 70}, DType::kF32);
    const Tensor w = tensor_of(random_values("w", 9 * 70), {9, 70}, DType::kF32);
    const Tensor residual = tensor_of(random_values("r", rows * 9), {rows, 9}, DType::kF32);
    const Tensor product = test::unset({rows, 9}, DType::kF32);
    const Tensor sum = test::unset({rows, 9}, DType::kF32);
    linear_forward(x, w, {}, product, Precision::kNative, stream);
    linear_forward(x, w, residual, sum, Precision::kNative, stream);
    for (std::int64_t i = 0; i < sum.numel(); ++i) {
      EXPECT_EQ(sum.data<float>()[i], product.data<float>()[i] + residual.data<float>()[i]);
    }
  }
}

TEST(MatmulContract, NoRowsLeaveTheWeightGradientAlone) {
  Stream stream;
  for (const Precision precision : {Precision::kNative, Precision::kBF16}) {
    const Tensor d_w = tensor_of({5, 6}, {1, 2}, DType::kF32);
    linear_backward_weight(Tensor({0, 1}, DType::kF32), Tensor({0, 2}, DType::kF32), d_w, precision,
                           stream);
    EXPECT_THAT(values_of(d_w), testing::ElementsAre(5, 6));
  }
}

#ifndef __SANITIZE_ADDRESS__  // which itself would be refused memory
// In a process of its own: OpenBLAS keeps its buffers, and without room for one it would ask for ever.
TEST(MatmulDeathTest, NoMemoryForOpenBlasIsToldAtOnce) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto multiply = [] {
    alarm(20);
    const Tensor x = Tensor::zeros({64, 64}, DType::kF32);
    const Tensor y({64, 64}, DType::kF32);
    rlim_t pages = 0;  // the sixth number
    std::ifstream statm("/proc/self/statm");
    for (int i = 0; i < 6; ++i) statm >> pages;
    const rlim_t allowed = pages * 4096 + (rlim_t{64} << 20);
    const rlimit limit{allowed, allowed};
    setrlimit(RLIMIT_DATA, &limit);
    Stream stream;
    try {
      linear_forward(x, x, {}, y, Precision::kNative, stream);
    } catch (const Error& error) {
      std::fputs(error.what(), stderr);
      std::exit(static_cast<int>(error.code()));
    }
    std::exit(0);
  };
  EXPECT_EXIT(multiply(), testing::ExitedWithCode(83), "128 MiB asked for .matrix products");
}
#endif

TEST(MatmulContract, WrongShapesAndTypesAreNamed) {
  Stream stream;
  const Tensor x({2, 3}, DType::kF32);
  const Tensor w({4, 3}, DType::kF32);
  const Tensor wide({4, 3}, DType::kF64);
  const Tensor y({2, 5}, DType::kF32);
  const Tensor good({2, 4}, DType::kF32);
  const auto message = [&](const Tensor& weight, const Tensor& out,
                           TensorView residual = {}) -> std::string {
    try {
      linear_forward(x, weight, residual, out, Precision::kNative, stream);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kInternal);
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message(w, y), testing::HasSubstr("y has shape [2, 5], expected [2, 4]"));
  EXPECT_THAT(message(wide, good), testing::HasSubstr("operands F32 and F64"));
  EXPECT_THAT(message(w, good, good), testing::HasSubstr("of one type and apart"));
  EXPECT_THAT(message(w, good, y), testing::HasSubstr("residual has shape [2, 5]"));
  const Tensor stack({5, 4, 3}, DType::kF32);
  EXPECT_THAT(message(stack, good), testing::HasSubstr("y has shape [2, 4], expected [5, 2, 4]"));
  EXPECT_THAT(message(Tensor({5, 4, 2}, DType::kF32), good),
              testing::HasSubstr("w has shape [5, 4, 2], expected [5, 4, 3]"));
}

}  // namespace
}  // namespace ttt::kernels
