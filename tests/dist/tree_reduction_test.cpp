#include "dist/tree_reduction.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/base/rng.h"
#include "tests/support/mpi_world.h"

namespace ttt::dist {
namespace {

using testing::HasSubstr;

/// Shard gradients of many magnitudes, so that another order of additions gives other bits.
template <typename T>
std::vector<T> shard_gradient(std::int64_t shard, std::int64_t count) {
  const CounterRng rng(7, "shard " + std::to_string(shard));
  std::vector<T> gradient(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    gradient[i] = static_cast<T>(rng.normal(2 * i) * std::exp(4.0 * rng.normal(2 * i + 1)));
  }
  return gradient;
}

/// The definition: pair adjacent nodes, an odd one out passes up, until one is left.
template <typename T>
std::vector<T> plain_tree(std::int64_t virtual_shards, std::int64_t count) {
  std::vector<std::vector<T>> nodes;
  for (std::int64_t shard = 0; shard < virtual_shards; ++shard) {
    nodes.push_back(shard_gradient<T>(shard, count));
  }
  while (nodes.size() > 1) {
    std::vector<std::vector<T>> parents;
    for (std::size_t i = 0; i + 1 < nodes.size(); i += 2) {
      std::vector<T> sum(nodes[i].size());
      for (std::size_t k = 0; k < sum.size(); ++k) {
        sum[k] = nodes[i][k] + nodes[i + 1][k];
      }
      parents.push_back(sum);
    }
    if (nodes.size() % 2 == 1) {
      parents.push_back(nodes.back());
    }
    nodes = parents;
  }
  return nodes.front();
}

template <typename T>
void accumulate(TreeAccumulator& tree, std::int64_t virtual_shards, Communicator& world,
                Tensor& out) {
  Stream stream;
  const std::int64_t local = virtual_shards / world.size();
  for (std::int64_t shard = world.rank() * local; shard < (world.rank() + 1) * local; ++shard) {
    const auto gradient = shard_gradient<T>(shard, out.numel());
    const TensorView slot = tree.slot(stream);
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      ASSERT_EQ(slot.data<T>()[i], T{0});
      slot.data<T>()[i] += gradient[i];
    }
    tree.push(stream);
  }
  tree.finish(world, out, stream);
}

template <typename T>
void expect_bits_of_plain_tree(std::int64_t virtual_shards, const Shape& shape,
                               Communicator& world) {
  TreeAccumulator tree(shape, kDType<T>);
  Tensor out(shape, kDType<T>);
  const auto expected = plain_tree<T>(virtual_shards, shape.numel());
  std::int64_t num_buffers = 0;
  for (int step = 0; step < 3; ++step) {
    accumulate<T>(tree, virtual_shards, world, out);
    ASSERT_TRUE(shape.numel() == 0 ||
                std::memcmp(out.view().raw(), expected.data(), expected.size() * sizeof(T)) == 0)
        << "V = " << virtual_shards << ", " << shape.str() << ", step " << step;
    ASSERT_TRUE(step == 0 || tree.num_buffers() == num_buffers) << "buffers are not reused";
    num_buffers = tree.num_buffers();
  }
  const double shards_a_rank = static_cast<double>(virtual_shards) / world.size();
  EXPECT_LE(static_cast<double>(num_buffers), std::ceil(std::log2(shards_a_rank)) + 1);
}

TEST(TreeReduction, HasTheBitsOfThePlainTreeOnAnyNumberOfRanks) {
  Communicator& world = test::world();
  for (const int factor : {1, 2, 4, 8}) {
    const std::int64_t virtual_shards = factor * world.size();
    for (const Shape& shape : {Shape{1}, Shape{0}, Shape{3}, Shape{7, 11}, Shape{70001}}) {
      expect_bits_of_plain_tree<float>(virtual_shards, shape, world);
    }
    expect_bits_of_plain_tree<double>(virtual_shards, Shape{5, 3}, world);
  }
}

TEST(TreeReduction, OneRankTakesAnyNumberOfShards) {
  const auto single = make_single_communicator();
  for (std::int64_t virtual_shards = 1; virtual_shards <= 17; ++virtual_shards) {
    expect_bits_of_plain_tree<float>(virtual_shards, Shape{33}, *single);
  }
}

TEST(TreeReduction, GivesAllRanksTheSameBitsForSixAndTwelveShards) {
  Communicator& world = test::world();
  for (const int virtual_shards : {4, 6, 8, 12}) {
    if (virtual_shards % world.size() == 0 &&
        std::has_single_bit(static_cast<unsigned>(virtual_shards / world.size()))) {
      expect_bits_of_plain_tree<float>(virtual_shards, Shape{501}, world);
    }
  }
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
  Communicator& world = test::world();
  Stream stream;
  TreeAccumulator tree(Shape{2}, DType::kF32);
  const Tensor out({2}, DType::kF32);
  const Tensor wrong({3}, DType::kF32);
  const auto message_of = [](const auto& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(message_of([&] { tree.push(stream); }), HasSubstr("push without a slot"));
  EXPECT_THAT(message_of([&] { tree.finish(world, out, stream); }),
              HasSubstr("finish after 0 shards"));
  tree.slot(stream);
  EXPECT_THAT(message_of([&] { tree.finish(world, out, stream); }), HasSubstr("was not pushed"));
  tree.push(stream);
  EXPECT_THAT(message_of([&] { tree.finish(world, wrong, stream); }),
              HasSubstr("out has shape [3], expected [2]"));
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
