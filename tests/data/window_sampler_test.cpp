#include "data/tokens/window_sampler.h"

#include <numeric>
#include <vector>

#include "tests/data/temporary_directory.h"

namespace ttt::data {
namespace {

std::vector<std::int64_t> epoch_order(const WindowSampler& sampler, std::int64_t epoch) {
  std::vector<std::int64_t> windows;
  for (std::int64_t i = 0; i < sampler.num_windows(); ++i) {
    windows.push_back(sampler.window_at(epoch * sampler.num_windows() + i));
  }
  return windows;
}

std::vector<std::int64_t> first_integers(std::int64_t count) {
  std::vector<std::int64_t> integers(static_cast<std::size_t>(count));
  std::iota(integers.begin(), integers.end(), 0);
  return integers;
}

TEST(WindowSampler, CountsWindowsThatShareOneToken) {
  const auto count = [](std::int64_t tokens, std::int64_t length) {
    return WindowSampler(tokens, length, Order::kSequential, 0).num_windows();
  };
  EXPECT_EQ(count(9, 8), 1);
  EXPECT_EQ(count(16, 8), 1);
  EXPECT_EQ(count(17, 8), 2);
  EXPECT_EQ(count(383'509'963'636, 2048), 187'260'724);
}

TEST(WindowSampler, SequentialOrderRepeatsEveryEpoch) {
  const WindowSampler sampler(41, 8, Order::kSequential, 7);
  EXPECT_EQ(epoch_order(sampler, 0), first_integers(5));
  EXPECT_EQ(epoch_order(sampler, 3), first_integers(5));
}

TEST(WindowSampler, EveryEpochIsAPermutation) {
  for (std::int64_t n = 1; n <= 300; ++n) {
    const WindowSampler sampler(n + 1, 1, Order::kPermuted, 1234);
    ASSERT_EQ(sampler.num_windows(), n);
    for (const std::int64_t epoch : {std::int64_t{0}, std::int64_t{1}, std::int64_t{1} << 33}) {
      auto windows = epoch_order(sampler, epoch);
      std::sort(windows.begin(), windows.end());
      ASSERT_EQ(windows, first_integers(n)) << n << " windows, epoch " << epoch;
    }
  }
  const WindowSampler large(100'003, 1, Order::kPermuted, 5);
  auto windows = epoch_order(large, 0);
  std::sort(windows.begin(), windows.end());
  EXPECT_EQ(windows, first_integers(100'002));
}

TEST(WindowSampler, SeedsAndEpochsDifferAndRepeat) {
  const WindowSampler sampler(1001, 1, Order::kPermuted, 1);
  const WindowSampler again(1001, 1, Order::kPermuted, 1);
  const WindowSampler other(1001, 1, Order::kPermuted, std::uint64_t{1} << 40);
  EXPECT_EQ(epoch_order(sampler, 2), epoch_order(again, 2));
  EXPECT_NE(epoch_order(sampler, 0), epoch_order(sampler, 1));
  EXPECT_NE(epoch_order(sampler, 0), epoch_order(other, 0));
  EXPECT_NE(epoch_order(sampler, 0), first_integers(1000));
}

// A checkpoint stores only the position, so the order may never change between versions.
TEST(WindowSampler, OrderIsTheSameForever) {
  const WindowSampler sampler(101, 10, Order::kPermuted, 42);
  EXPECT_EQ(epoch_order(sampler, 0), (std::vector<std::int64_t>{8, 4, 0, 1, 3, 9, 2, 7, 6, 5}));
  EXPECT_EQ(epoch_order(sampler, 1), (std::vector<std::int64_t>{8, 1, 3, 6, 9, 2, 7, 4, 0, 5}));
}

// Over many epochs each window comes first about equally often: chi squared of 16 cells, 15 degrees
// of freedom, is under 45 with probability 0.9999; the seed is fixed.
TEST(WindowSampler, FirstWindowIsUniform) {
  constexpr int kEpochs = 4000;
  const WindowSampler sampler(17, 1, Order::kPermuted, 9);
  std::vector<double> counts(16, 0.0);
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    counts[static_cast<std::size_t>(sampler.window_at(epoch * 16))] += 1;
  }
  double chi_squared = 0;
  for (const double count : counts) chi_squared += (count - 250) * (count - 250) / 250;
  EXPECT_LT(chi_squared, 45);
}

TEST(WindowSampler, TooFewTokensNameTheNumbersAndFiles) {
  expect_error(ExitCode::kUsage, {"8 tokens in a.npy", "context_length 8 needs 9"},
               [] { WindowSampler(8, 8, Order::kPermuted, 0, "a.npy"); });
  expect_error(ExitCode::kUsage, {"0 tokens"}, [] { WindowSampler(0, 8, Order::kPermuted, 0); });
  expect_error(ExitCode::kUsage, {"context length of 0"},
               [] { WindowSampler(8, 0, Order::kPermuted, 0); });
}

TEST(ReadWindow, TargetsFollowInputsAndMaskedTargetsWeighNothing) {
  const TemporaryDirectory directory;
  const std::string path = directory.path("a.h5");
  TokenShardWriter writer(path, 100, 1, 2);
  writer.append_document(std::vector<std::int32_t>{1, 10, 11, 2, 1, 12, 13});
  writer.finish();
  const TokenArray tokens = TokenArray::open({path}, Split::kTrain);
  std::vector<std::int64_t> inputs(3);
  std::vector<std::int64_t> targets(3);
  std::vector<double> weight(3);
  read_window(tokens, 1, 1, inputs, targets, weight);
  EXPECT_EQ(inputs, (std::vector<std::int64_t>{2, 1, 12}));
  EXPECT_EQ(targets, (std::vector<std::int64_t>{1, 12, 13}));
  EXPECT_EQ(weight, (std::vector<double>{0, 1, 1}));
  read_window(tokens, 1, -1, inputs, targets, weight);
  EXPECT_EQ(weight, (std::vector<double>{1, 1, 1}));
}

}  // namespace
}  // namespace ttt::data
