#include "dist/tree_reduction.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "dist/communicator.h"
#include "tests/dist/tree_values.h"

namespace ttt::dist {
namespace {

using testing::HasSubstr;

/// Every shard's gradient into a slot, the last one merged piece by piece from the end.
template <typename T>
void expect_bits_of_plain_tree(std::int64_t virtual_shards, const Shape& shape,
                               std::int64_t piece) {
  Stream stream;
  TreeAccumulator tree(shape, kDType<T>);
  const std::int64_t count = shape.numel();
  const auto expected = plain_tree<T>(virtual_shards, count);
  std::int64_t num_buffers = 0;
  for (int step = 0; step < 3; ++step) {
    TensorView sum;
    for (std::int64_t shard = 0; shard < virtual_shards; ++shard) {
      const auto gradient = shard_gradient<T>(shard, count);
      const TensorView slot = tree.slot(stream);
      for (std::size_t i = 0; i < gradient.size(); ++i) {
        ASSERT_EQ(slot.data<T>()[i], T{0});
        slot.data<T>()[i] += gradient[i];
      }
      if (shard + 1 < virtual_shards) tree.push(stream);
    }
    for (std::int64_t end = count; end >= 0; end -= piece) {
      sum = tree.merge({std::max<std::int64_t>(0, end - piece), end}, stream);
    }
    ASSERT_TRUE(count == 0 ||
                std::memcmp(sum.raw(), expected.data(), expected.size() * sizeof(T)) == 0)
        << "V = " << virtual_shards << ", " << shape.str() << ", step " << step;
    ASSERT_TRUE(step == 0 || tree.num_buffers() == num_buffers) << "buffers are not reused";
    num_buffers = tree.num_buffers();
  }
  EXPECT_LE(static_cast<double>(num_buffers),
            std::ceil(std::log2(static_cast<double>(virtual_shards))) + 1);
}

TEST(TreeReduction, AnyNumberOfShardsInAnyPiecesHasTheBitsOfThePlainTree) {
  for (std::int64_t virtual_shards = 1; virtual_shards <= 17; ++virtual_shards) {
    expect_bits_of_plain_tree<float>(virtual_shards, Shape{33}, 33);
    expect_bits_of_plain_tree<float>(virtual_shards, Shape{33}, 10);
    expect_bits_of_plain_tree<double>(virtual_shards, Shape{5, 3}, 4);
  }
  expect_bits_of_plain_tree<float>(4, Shape{0}, 1);
}

TEST(TreeReduction, OrderMattersForTheseValues) {
  const auto tree = plain_tree<float>(8, 501);
  std::vector<float> chain(501, 0.0F);
  for (int shard = 0; shard < 8; ++shard) {
    const auto gradient = shard_gradient<float>(shard, 501);
    for (std::size_t i = 0; i < chain.size(); ++i) {
      chain[i] += gradient[i];
    }
  }
  EXPECT_NE(tree, chain) << "the other tests would pass with any order";
}

TEST(TreeReduction, RejectsMisuse) {
  Stream stream;
  TreeAccumulator tree(Shape{2}, DType::kF32);
  const auto message_of = [](const auto& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(message_of([&] { tree.push(stream); }), HasSubstr("push without a slot"));
  EXPECT_THAT(message_of([&] { tree.merge({0, 2}, stream); }), HasSubstr("merge without a slot"));
  tree.slot(stream);
  tree.merge({0, 2}, stream);
  EXPECT_THAT(message_of([&] { tree.push(stream); }), HasSubstr("push without a slot"));
  EXPECT_THAT(message_of([] { TreeAccumulator(Shape{2}, DType::kBF16); }),
              HasSubstr("gradient sums are of F64 or F32, not BF16"));
}

TEST(VirtualShards, ValidSplitsPass) {
  for (const auto& [shards, ranks] : {std::pair{8, 1},
                                      {8, 2},
                                      {8, 8},
                                      {6, 1},
                                      {6, 3},
                                      {6, 6},
                                      {12, 3},
                                      {7, 7},
                                      {5, 1},
                                      {48, 12}}) {
    EXPECT_NO_THROW(validate_virtual_shards(shards, ranks)) << shards << " over " << ranks;
  }
}

TEST(VirtualShards, InvalidSplitsNameTheNearestChoices) {
  const auto message_of = [](std::int64_t shards, int ranks) -> std::string {
    try {
      validate_virtual_shards(shards, ranks);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(message_of(8, 3), HasSubstr("parallel.virtual_shards = 8 cannot be split over 3"));
  EXPECT_THAT(message_of(8, 3), HasSubstr("With 3 ranks use 6 or 12 virtual shards; with 8 "
                                          "virtual shards use 2 or 4 ranks"));
  EXPECT_THAT(message_of(6, 2), HasSubstr("With 2 ranks use 4 or 8 virtual shards; with 6 "
                                          "virtual shards use 1 or 3 ranks"));
  EXPECT_THAT(message_of(4, 16), HasSubstr("With 16 ranks use 16 virtual shards; with 4 virtual "
                                           "shards use 4 ranks"));
  EXPECT_THAT(message_of(0, 2), HasSubstr("at least 1 is needed"));
}

}  // namespace
}  // namespace ttt::dist
