#include <gmock/gmock.h>

#include "core/base/memory.h"
#include "kernels/copy.h"
#include "tests/support/kernel_check.h"
#include "tests/support/tensors.h"

namespace ttt::kernels {
namespace {

using test::error_of;
using test::random_values;
using test::tensor_of;
using test::values_of;

// Columns 2 .. 6 of 9 into 1 .. 5 of 7; the others stay.
void expect_columns(DType dtype) {
  Stream stream = test::stream();
  for (const std::int64_t rows : {1, 3, 5000}) {
    const Tensor from = tensor_of(random_values("from", rows * 9), {rows, 9}, dtype);
    const Tensor to = tensor_of(random_values("to", rows * 7), {rows, 7}, dtype);
    std::vector<double> expected = values_of(to);
    const std::vector<double> source = values_of(from);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < 4; ++i) expected[r * 7 + 1 + i] = source[r * 9 + 2 + i];
    }
    copy_columns(from, 2, to, 1, 4, stream);
    stream.synchronize();
    EXPECT_EQ(values_of(to), expected) << rows;
  }
}

TEST(CopyColumns, LeavesTheOthersAlone) { expect_columns(DType::kF64); }
TEST(CopyColumns, FloatLeavesTheOthersAlone) { expect_columns(DType::kF32); }
TEST(CopyColumns, BFloat16LeavesTheOthersAlone) { expect_columns(DType::kBF16); }

// Memory of a device that kernels alone touch.
TEST(TensorZeros, FloatKernelsReadThem) {
  Stream stream = test::stream();
  const Tensor host({1000}, DType::kF32);
  {
    const memory::Scope scope({"tests"}, memory::Place::kDevice);
    {
      const Tensor ones({1000}, DType::kF32);
      fill(ones, 1, stream);
      stream.synchronize();
    }
    copy(Tensor::zeros({1000}, DType::kF32), host, stream);
    stream.synchronize();
  }
  EXPECT_THAT(values_of(host), testing::Each(0));
}

TEST(CopyColumns, MustLieInBothMatrices) {
  Stream stream;
  const Tensor from({2, 9}, DType::kF32);
  const Tensor to({2, 7}, DType::kF32);
  EXPECT_THAT(error_of([&] { copy_columns(from, 6, to, 0, 4, stream); }),
              testing::HasSubstr("4 columns from 6 of [2, 9] on to 0 of [2, 7] on"));
  EXPECT_NE(error_of([&] { copy_columns(from, 0, to, 4, 4, stream); }), "");
  EXPECT_NE(error_of([&] {
              copy_columns(from, 0, Tensor({3, 7}, DType::kF32), 0, 4, stream);
            }),
            "");
}

}  // namespace
}  // namespace ttt::kernels
