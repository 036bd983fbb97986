#include "core/base/tensor.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "core/base/memory.h"

namespace ttt {
namespace {

Tensor counting(const Shape& shape) {
  Tensor tensor(shape, DType::kF32);
  std::iota(tensor.span<float>().begin(), tensor.span<float>().end(), 0.0F);
  return tensor;
}

TEST(TensorView, ADefaultOneIsEmpty) {
  EXPECT_TRUE(TensorView().empty());
  EXPECT_TRUE(Tensor().empty());
  EXPECT_EQ(TensorView().numel(), 0);
  // No elements is not the same as no tensor: [B, 0, C] may be asked for.
  EXPECT_FALSE(Tensor(Shape{2, 0, 3}, DType::kF32).empty());
}

TEST(TensorView, ReshapeKeepsTheElements) {
  const Tensor tensor = counting({2, 6});
  const TensorView view = tensor.view().reshape({3, 4});
  EXPECT_EQ(view.shape(), (Shape{3, 4}));
  EXPECT_EQ(view.raw(), tensor.view().raw());
  EXPECT_THROW((void)tensor.view().reshape({5}), Error);
}

TEST(TensorView, SliceBorrowsRows) {
  const Tensor tensor = counting({4, 3, 2});
  const TensorView rows = tensor.view().slice(1, 3);
  EXPECT_EQ(rows.shape(), (Shape{2, 3, 2}));
  EXPECT_EQ(rows.data<float>()[0], 6.0F);
  EXPECT_EQ(rows.span<float>().back(), 17.0F);
  rows.data<float>()[0] = -1;
  EXPECT_EQ(tensor.data<float>()[6], -1.0F);
  EXPECT_EQ(tensor.view().slice(2, 2).numel(), 0);
  EXPECT_EQ(tensor.view().slice(4, 4).numel(), 0);
  EXPECT_EQ(rows.slice(1, 2).data<float>()[0], 12.0F);
}

TEST(TensorView, SliceOutsideThrows) {
  const Tensor tensor = counting({4, 2});
  EXPECT_THROW((void)tensor.view().slice(-1, 2), Error);
  EXPECT_THROW((void)tensor.view().slice(3, 2), Error);
  EXPECT_THROW((void)tensor.view().slice(0, 5), Error);
  EXPECT_THROW((void)counting({}).view().slice(0, 1), Error);
}

TEST(TensorView, IsReadOnlyAsItsOwnType) {
  const Tensor tensor = counting({2});
  EXPECT_NO_THROW((void)tensor.data<float>());
  EXPECT_THROW((void)tensor.data<double>(), Error);
  EXPECT_THROW((void)tensor.data<std::int32_t>(), Error);
}

TEST(TensorView, CountsBytesByType) {
  EXPECT_EQ(Tensor(Shape{3, 5}, DType::kBF16).view().num_bytes(), 30);
  EXPECT_EQ(Tensor(Shape{3, 5}, DType::kF64).view().num_bytes(), 120);
}

TEST(Tensor, CopiesShareTheElements) {
  const Tensor a = Tensor::zeros({3}, DType::kF32);
  const Tensor b = a;
  b.data<float>()[1] = 4;
  EXPECT_EQ(a.data<float>()[1], 4.0F);
}

TEST(Tensor, ARowOwnsTheMemoryOfAll) {
  Tensor whole({2, 3, 4}, DType::kF32);
  const float* const begin = whole.data<float>();
  const std::int64_t live = memory::live_bytes();
  Tensor row = whole.at(1);
  EXPECT_EQ(row.shape(), (Shape{3, 4}));
  EXPECT_EQ(row.data<float>(), begin + 12);
  EXPECT_EQ(whole.view().at(1).raw(), row.view().raw());
  whole = {};
  EXPECT_EQ(memory::live_bytes(), live);
  row = {};
  EXPECT_LT(memory::live_bytes(), live);
  EXPECT_THROW(static_cast<void>(Tensor({2}, DType::kF32).at(2)), Error);
  EXPECT_THROW(static_cast<void>(Tensor(Shape{}, DType::kF32).at(0)), Error);
}

TEST(ExpectShape, NamesTheArgument) {
  const Tensor tensor = counting({2, 3});
  EXPECT_NO_THROW(expect_shape("x", tensor, {2, 3}));
  try {
    expect_shape("x", tensor, {3, 2});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("x has shape [2, 3], expected [3, 2]"),
              std::string::npos);
  }
  try {
    expect_shape("w", {}, {3});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("w is missing; [3] expected"), std::string::npos);
  }
}

TEST(Copy, ConvertsBetweenFloatingPointTypes) {
  const Tensor from = counting({3, 3});
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16}) {
    Tensor back(from.shape(), DType::kF32);
    copy(to_dtype(from, dtype), back);
    for (int i = 0; i < 9; ++i) EXPECT_EQ(back.data<float>()[i], static_cast<float>(i));
  }
}

TEST(Copy, RejectsOtherShapesAndIntegers) {
  EXPECT_THROW(copy(counting({2}), counting({3})), Error);
  EXPECT_THROW(copy(counting({2}), Tensor({2}, DType::kI64)), Error);
  // The same integer type is a plain copy.
  Tensor ids({2}, DType::kI64), other({2}, DType::kI64);
  ids.data<std::int64_t>()[0] = 7;
  ids.data<std::int64_t>()[1] = -8;
  copy(ids, other);
  EXPECT_EQ(other.data<std::int64_t>()[1], -8);
}

TEST(Fill, SetsEveryElement) {
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16}) {
    Tensor tensor({5}, dtype);
    fill(tensor, 0.375);
    const Tensor wide = to_dtype(tensor, DType::kF64);
    for (const double value : wide.span<double>()) EXPECT_EQ(value, 0.375);
  }
  EXPECT_THROW(fill(Tensor({5}, DType::kI32), 1), Error);
}

TEST(BFloat16, RoundsToNearestEven) {
  const auto rounded = [](float value) { return static_cast<float>(BFloat16(value)); };
  constexpr float kUlp = 0x1p-7F;  // of 1
  EXPECT_EQ(rounded(1.0F), 1.0F);
  EXPECT_EQ(rounded(-2.5F), -2.5F);
  EXPECT_EQ(rounded(1.0F + kUlp / 2), 1.0F);                    // tie to even: down
  EXPECT_EQ(rounded(1.0F + 3 * kUlp / 2), 1.0F + 2 * kUlp);     // tie to even: up
  EXPECT_EQ(rounded(1.0F + kUlp / 2 + 0x1p-20F), 1.0F + kUlp);  // just above the tie
  EXPECT_EQ(rounded(1.0F + kUlp / 2 - 0x1p-20F), 1.0F);
  EXPECT_EQ(rounded(-(1.0F + 3 * kUlp / 2)), -(1.0F + 2 * kUlp));
}

TEST(BFloat16, KeepsSpecialValues) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(static_cast<float>(BFloat16(kInf)), kInf);
  EXPECT_EQ(static_cast<float>(BFloat16(-kInf)), -kInf);
  EXPECT_EQ(static_cast<float>(BFloat16(std::numeric_limits<float>::max())), kInf);
  EXPECT_TRUE(std::signbit(static_cast<float>(BFloat16(-0.0F))));
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::nanf("")))));
  // A NaN whose payload sits in the bits that are cut off must not become infinity.
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::bit_cast<float>(0x7f800001U)))));
}

}  // namespace
}  // namespace ttt
