#include "data/tokens/window_sampler.h"

#include <numeric>
#include <vector>

#include "data/tokens/mixture.h"
#include "data/tokens/window_layout.h"
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

TEST(WindowSampler, SequentialOrderRepeatsEveryEpoch) {
  const WindowSampler sampler(5, Order::kSequential, 7);
  EXPECT_EQ(epoch_order(sampler, 0), first_integers(5));
  EXPECT_EQ(epoch_order(sampler, 3), first_integers(5));
}

TEST(WindowSampler, EveryEpochIsAPermutation) {
  for (std::int64_t n = 1; n <= 300; ++n) {
    const WindowSampler sampler(n, Order::kPermuted, 1234);
    ASSERT_EQ(sampler.num_windows(), n);
    for (const std::int64_t epoch : {std::int64_t{0}, std::int64_t{1}, std::int64_t{1} << 33}) {
      auto windows = epoch_order(sampler, epoch);
      std::sort(windows.begin(), windows.end());
      ASSERT_EQ(windows, first_integers(n)) << n << " windows, epoch " << epoch;
    }
  }
  const WindowSampler large(100'002, Order::kPermuted, 5);
  auto windows = epoch_order(large, 0);
  std::sort(windows.begin(), windows.end());
  EXPECT_EQ(windows, first_integers(100'002));
}

TEST(WindowSampler, SeedsAndEpochsDifferAndRepeat) {
  const WindowSampler sampler(1000, Order::kPermuted, 1);
  const WindowSampler again(1000, Order::kPermuted, 1);
  const WindowSampler other(1000, Order::kPermuted, std::uint64_t{1} << 40);
  EXPECT_EQ(epoch_order(sampler, 2), epoch_order(again, 2));
  EXPECT_NE(epoch_order(sampler, 0), epoch_order(sampler, 1));
  EXPECT_NE(epoch_order(sampler, 0), epoch_order(other, 0));
  EXPECT_NE(epoch_order(sampler, 0), first_integers(1000));
}

// A checkpoint stores only the position, so the order may never change between versions.
TEST(WindowSampler, OrderIsTheSameForever) {
  const WindowSampler sampler(10, Order::kPermuted, 42);
  EXPECT_EQ(epoch_order(sampler, 0), (std::vector<std::int64_t>{8, 4, 0, 1, 3, 9, 2, 7, 6, 5}));
  EXPECT_EQ(epoch_order(sampler, 1), (std::vector<std::int64_t>{8, 1, 3, 6, 9, 2, 7, 4, 0, 5}));
}

// Over many epochs each window comes first about equally often: chi squared of 16 cells, 15 degrees
// of freedom, is under 45 with probability 0.9999; the seed is fixed.
TEST(WindowSampler, FirstWindowIsUniform) {
  constexpr int kEpochs = 4000;
  const WindowSampler sampler(16, Order::kPermuted, 9);
  std::vector<double> counts(16, 0.0);
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    counts[static_cast<std::size_t>(sampler.window_at(epoch * 16))] += 1;
  }
  double chi_squared = 0;
  for (const double count : counts) chi_squared += (count - 250) * (count - 250) / 250;
  EXPECT_LT(chi_squared, 45);
}

TEST(OrderFile, SaysWhichWindowIsWhichSample) {
  const TemporaryDirectory directory;
  const std::string text = directory.write("order.txt", "3 0\r\n2\t1\n\n1 0 3");
  const auto file = std::make_shared<const OrderFile>(text, 4);
  EXPECT_EQ(file->num_samples(), 7);
  const WindowSampler sampler(4, file);
  std::vector<std::int64_t> windows;
  for (std::int64_t n = 0; n < 7; ++n) windows.push_back(sampler.window_at(n));
  EXPECT_EQ(windows, (std::vector<std::int64_t>{3, 0, 2, 1, 1, 0, 3}));
  EXPECT_THROW(static_cast<void>(sampler.window_at(7)), Error);
}

TEST(OrderFile, WhatIsNoOrderIsToldWithItsPlace) {
  const TemporaryDirectory directory;
  const auto expect_refusal = [&](const std::string& text, std::int64_t num_windows,
                                  std::initializer_list<std::string> parts) {
    const std::string path = directory.write("order.txt", text);
    expect_error(ExitCode::kCorruptInput, parts, [&] { const OrderFile file(path, num_windows); });
  };
  expect_refusal("0 1\n2 x3", 9, {"order.txt:2: \"x3\" is no whole number"});
  expect_refusal("0 1.0", 9, {"\"1.0\""});
  expect_refusal("99999999999999999999", 9, {"\"99999999999999999999\""});
  expect_refusal(" \n", 9, {"no samples"});
  expect_refusal("0 1 2 9", 9, {"position 3: window 9 does not exist", "9 windows"});
  expect_refusal("0 -1", 9, {"position 1: window -1"});
  expect_refusal("0 1 2 1", 9, {"position 3: window 1 comes for the 2. time", "room for 1"});
  expect_refusal("0 1 1 1 1 1 0", 2, {"position 5: window 1 comes for the 5. time"});
}

TEST(WindowLayout, CountsWindowsThatShareOneToken) {
  const auto count = [](std::int64_t tokens, std::int64_t length) {
    return WindowLayout::stride(tokens, length).num_windows();
  };
  EXPECT_EQ(count(9, 8), 1);
  EXPECT_EQ(count(16, 8), 1);
  EXPECT_EQ(count(17, 8), 2);
  EXPECT_EQ(count(383'509'963'636, 2048), 187'260'724);
}

TEST(WindowLayout, TooFewTokensNameTheNumbersAndFiles) {
  expect_error(ExitCode::kUsage, {"8 tokens in a.npy", "context_length 8 needs 9"},
               [] { WindowLayout::stride(8, 8, "a.npy"); });
  expect_error(ExitCode::kUsage, {"0 tokens"}, [] { WindowLayout::stride(0, 8); });
  expect_error(ExitCode::kUsage, {"context length of 0"}, [] { WindowLayout::stride(8, 0); });
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
  const auto layout = WindowLayout::stride(tokens.num_tokens(), 3);
  read_window(tokens, layout, 1, 1, inputs, targets, weight);
  EXPECT_EQ(inputs, (std::vector<std::int64_t>{2, 1, 12}));
  EXPECT_EQ(targets, (std::vector<std::int64_t>{1, 12, 13}));
  EXPECT_EQ(weight, (std::vector<double>{0, 1, 1}));
  read_window(tokens, layout, 1, -1, inputs, targets, weight);
  EXPECT_EQ(weight, (std::vector<double>{1, 1, 1}));
}

// Six documents over two files with windows of 8: 3 + 4 fit, 2 begins a window because 20 does not, ...
TEST(WindowLayout, DocumentsAreWholeWhereTheyFit) {
  const TemporaryDirectory directory;
  const std::vector<std::vector<std::int64_t>> lengths = {{3, 4, 2}, {20, 4, 8}};
  std::vector<std::string> paths;
  std::int32_t id = 3;
  for (const auto& file : lengths) {
    paths.push_back(directory.path(fmt::format("{}.h5", paths.size())));
    TokenShardWriter writer(paths.back(), 100, 1, 2);
    for (const std::int64_t length : file) {
      std::vector<std::int32_t> document(static_cast<std::size_t>(length), 1);
      for (std::size_t i = 1; i < document.size(); ++i) document[i] = id++;
      writer.append_document(document);
    }
    writer.finish();
  }
  const TokenArray tokens = TokenArray::open(paths, Split::kTrain);
  const WindowLayout layout = WindowLayout::documents(tokens, 8);
  std::vector<std::int64_t> begins;
  std::vector<std::int64_t> ends;
  for (std::int64_t i = 0; i < layout.num_windows(); ++i) {
    begins.push_back(layout.begin(i));
    ends.push_back(layout.end(i));
  }
  EXPECT_EQ(begins, (std::vector<std::int64_t>{0, 7, 9, 17, 25, 33}));
  EXPECT_EQ(ends, (std::vector<std::int64_t>{7, 9, 17, 25, 33, 41}));

  std::vector<std::int64_t> all(static_cast<std::size_t>(tokens.num_tokens()));
  tokens.read(0, all);
  std::vector<std::int64_t> inputs(8);
  std::vector<std::int64_t> targets(8);
  std::vector<double> weight(8);
  read_window(tokens, layout, 1, 1, inputs, targets, weight);
  EXPECT_EQ(inputs, (std::vector<std::int64_t>{1, all[8], 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(targets, (std::vector<std::int64_t>{all[8], 1, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(weight, (std::vector<double>{1, 0, 0, 0, 0, 0, 0, 0}));
  read_window(tokens, layout, 2, 1, inputs, targets,
              weight);  // cut: its last target is the next window's first input
  EXPECT_EQ(targets.back(), all[17]);
  EXPECT_EQ(weight.back(), 1);
  read_window(tokens, layout, 5, -1, inputs, targets, weight);  // nothing follows the last token
  EXPECT_EQ(weight, (std::vector<double>{1, 1, 1, 1, 1, 1, 1, 0}));
}

TEST(WindowLayout, ADocumentOfOneTokenDoesNotBeginALongOne) {
  const TemporaryDirectory directory;
  TokenShardWriter writer(directory.path("a.h5"), 100, 1, 2);
  writer.append_document(std::vector<std::int32_t>(1, 3));
  writer.append_document(std::vector<std::int32_t>(9, 4));
  writer.finish();
  const TokenArray tokens = TokenArray::open({directory.path("a.h5")}, Split::kTrain);
  const WindowLayout layout = WindowLayout::documents(tokens, 8);
  ASSERT_EQ(layout.num_windows(), 3);
  EXPECT_EQ(layout.begin(1), 1);
  EXPECT_EQ(layout.end(1), 9);
}

TEST(WindowLayout, OnlyOurShardsKnowTheirDocuments) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("a.bin", std::string(40, '\1'));
  const TokenArray tokens = TokenArray::open({path + ":u16"}, Split::kTrain);
  expect_error(ExitCode::kUsage, "does not say where its documents begin",
               [&] { WindowLayout::documents(tokens, 8); });
}

// Every source's samples are its own 0, 1, 2, ...
TEST(Mixture, KeepsProportionsAtEverySample) {
  for (const std::vector<double>& weights : std::vector<std::vector<double>>{
           {1}, {3, 1}, {0.1, 0.2, 0.7}, {5, 1, 1, 1e-3}, {1, 1, 1, 1, 1, 1, 1}}) {
    const Mixture mixture(weights);
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    std::vector<std::int64_t> seen(weights.size());
    for (std::int64_t n = 0; n < 20'000; ++n) {
      ASSERT_EQ(mixture.counts(n), seen);
      const Mixture::Place place = mixture.place_of(n);
      ASSERT_EQ(place.position, seen[place.source]++);
      for (std::size_t s = 0; s < weights.size(); ++s) {
        const double share = static_cast<double>(n + 1) * weights[s] / sum;
        // The bound of the header; weights are rounded to 2^-32.
        ASSERT_NEAR(static_cast<double>(seen[s]), share, static_cast<double>(s + 1) / 2 + 1e-4);
      }
    }
  }
}

// A checkpoint stores only the position, so this may never change between versions.
TEST(Mixture, IsTheSameForever) {
  const Mixture mixture(std::vector<double>{0.5, 0.3, 0.2});
  std::vector<std::size_t> sources;
  for (std::int64_t n = 0; n < 20; ++n) sources.push_back(mixture.place_of(n).source);
  EXPECT_EQ(sources,
            (std::vector<std::size_t>{0, 1, 0, 2, 0, 1, 0, 2, 0, 1, 0, 1, 0, 2, 0, 1, 0, 2, 0, 1}));
}

TEST(Mixture, SharesAreExactInTheLongRun) {
  const Mixture mixture(std::vector<double>{0.25, 0.75});
  constexpr std::int64_t kFar = std::int64_t{1} << 60;
  EXPECT_EQ(mixture.counts(kFar), (std::vector<std::int64_t>{kFar / 4, kFar / 4 * 3}));
  EXPECT_EQ(mixture.place_of(kFar).position, mixture.counts(kFar)[mixture.place_of(kFar).source]);
}

TEST(Mixture, WeightsThatCannotBeKeptAreRefused) {
  const auto refuse = [](std::vector<double> weights, const std::string& part) {
    expect_error(ExitCode::kUsage, part, [&] { const Mixture mixture(weights); });
  };
  refuse({1, 0}, "the weight of source 1 is 0");
  refuse({-1, 2}, "the weight of source 0 is -1");
  refuse({1e-12, 1}, "too uneven");
  refuse({1, 1e-12}, "too uneven");
}

}  // namespace
}  // namespace ttt::data
