#include "core/base/shape.h"

#include <gtest/gtest.h>

#include "core/base/dtype.h"
#include "core/base/error.h"

namespace ttt {
namespace {

TEST(Shape, CountsItsElements) {
  EXPECT_EQ(Shape().numel(), 1);
  EXPECT_EQ(Shape().rank(), 0);
  EXPECT_EQ((Shape{2, 3, 4}).numel(), 24);
  EXPECT_EQ((Shape{2, 0, 4}).numel(), 0);
  EXPECT_EQ((Shape{1 << 20, 1 << 20}).numel(), std::int64_t{1} << 40);
}

TEST(Shape, NegativeDimensionsCountFromTheLast) {
  const Shape shape{2, 3, 4};
  EXPECT_EQ(shape[0], 2);
  EXPECT_EQ(shape[2], 4);
  EXPECT_EQ(shape[-1], 4);
  EXPECT_EQ(shape[-3], 2);
  EXPECT_THROW((void)shape[3], Error);
  EXPECT_THROW((void)shape[-4], Error);
  EXPECT_THROW((void)Shape()[0], Error);
}

TEST(Shape, EqualsOnlyTheSameRankAndExtents) {
  EXPECT_EQ((Shape{2, 3}), (Shape{2, 3}));
  EXPECT_NE((Shape{2, 3}), (Shape{3, 2}));
  EXPECT_NE((Shape{2, 3}), (Shape{2, 3, 1}));
  EXPECT_NE((Shape{0}), Shape());
}

TEST(Shape, PrintsItsExtents) {
  EXPECT_EQ((Shape{2, 3}).str(), "[2, 3]");
  EXPECT_EQ(Shape().str(), "[]");
}

TEST(Shape, RejectsNegativeExtentsAndTooManyDimensions) {
  EXPECT_THROW((Shape{2, -1}), Error);
  EXPECT_EQ((Shape{1, 1, 1, 1, 1, 1, 1, 1}).rank(), Shape::kMaxRank);
  EXPECT_THROW((Shape{1, 1, 1, 1, 1, 1, 1, 1, 1}), Error);
}

TEST(DTypes, HaveTheSizesAndNamesOfSafetensors) {
  struct Row {
    DType dtype;
    std::int64_t bytes;
    const char* name;
  };
  for (const Row& row :
       {Row{DType::kF64, 8, "F64"}, Row{DType::kF32, 4, "F32"}, Row{DType::kBF16, 2, "BF16"},
        Row{DType::kI64, 8, "I64"}, Row{DType::kI32, 4, "I32"}, Row{DType::kU16, 2, "U16"},
        Row{DType::kU8, 1, "U8"}}) {
    EXPECT_EQ(size_of(row.dtype), row.bytes);
    EXPECT_EQ(name_of(row.dtype), row.name);
  }
}

}  // namespace
}  // namespace ttt
