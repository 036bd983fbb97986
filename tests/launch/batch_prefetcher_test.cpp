#include "launch/batch_prefetcher.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <thread>

#include "core/base/memory.h"
#include "tests/launch/token_run.h"
#include "tests/support/tensors.h"

namespace ttt::launch {
namespace {

class BatchPrefetcherTest : public testing::Test {
 protected:
  BatchPrefetcherTest() : reader_(run_.config(), data::Split::kTrain) {}

  // The first token of each row of samples [position, position + rows), read at once.
  [[nodiscard]] std::vector<double> first_tokens(std::int64_t position, std::int64_t rows) const {
    const BatchReader::Buffers buffers = reader_.make_buffers(rows);
    reader_.read(position, 8, buffers);
    return first_tokens(buffers);
  }
  static std::vector<double> first_tokens(const BatchReader::Buffers& buffers) {
    std::vector<double> tokens;
    for (std::int64_t row = 0; row < buffers.ids.size(0); ++row) {
      tokens.push_back(
          static_cast<double>(buffers.ids.data<std::int64_t>()[row * buffers.ids.size(1)]));
    }
    return tokens;
  }

  test::TokenRun run_;
  BatchReader reader_;
};

TEST_F(BatchPrefetcherTest, GivesTheMicroBatchesInTheirOrder) {
  BatchPrefetcher prefetcher(reader_, 2, 8, 40, [](std::int64_t i) { return 3 * i; });
  const BatchReader::Buffers expected = reader_.make_buffers(2);
  for (std::int64_t i = 0; i < 40; ++i) {
    const BatchReader::Buffers got = prefetcher.next();
    reader_.read(3 * i, 8, expected);
    EXPECT_EQ(test::values_of(to_dtype(got.weight, DType::kF64)),
              test::values_of(to_dtype(expected.weight, DType::kF64)));
    EXPECT_TRUE(
        std::ranges::equal(got.ids.span<std::int64_t>(), expected.ids.span<std::int64_t>()));
    EXPECT_TRUE(std::ranges::equal(got.targets.span<std::int64_t>(),
                                   expected.targets.span<std::int64_t>()));
    prefetcher.give_back({});
    // Its thread looks now, before this one asks it for more: ThreadSanitizer sees whether both agree on locks.
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_THROW(prefetcher.next(), Error);
}

// On a device that would be memory which queued kernels may still use, taken by a thread that knows no device.
TEST_F(BatchPrefetcherTest, ReadingTakesNoMemoryOfTensors) {
  const BatchReader::Buffers buffers = reader_.make_buffers(2);
  const std::int64_t before = memory::live_bytes();
  memory::reset_peak();
  reader_.read(0, 8, buffers);
  EXPECT_EQ(memory::peak_bytes(), before);
}

class WaitsForPromise final : public QueueEvent {
 public:
  explicit WaitsForPromise(std::shared_future<void> future) : future_(std::move(future)) {}
  void wait() override { future_.wait(); }

 private:
  std::shared_future<void> future_;
};

TEST_F(BatchPrefetcherTest, LeavesBuffersAloneUntilTheDeviceHasReadThem) {
  constexpr std::int64_t kDepth = BatchPrefetcher::kDepth;
  BatchPrefetcher prefetcher(reader_, 1, 8, kDepth + 2, [](std::int64_t i) { return i; });
  std::promise<void> reached;
  const BatchReader::Buffers first = prefetcher.next();
  prefetcher.give_back(
      Stream::Event(std::make_unique<WaitsForPromise>(reached.get_future().share())));
  for (std::int64_t i = 1; i < kDepth; ++i) {  // the other buffers
    EXPECT_EQ(first_tokens(prefetcher.next()), first_tokens(i, 1));
    prefetcher.give_back({});
  }
  EXPECT_EQ(first_tokens(first), first_tokens(0, 1));
  reached.set_value();
  EXPECT_EQ(first_tokens(prefetcher.next()), first_tokens(kDepth, 1));
  EXPECT_EQ(first_tokens(first), first_tokens(kDepth, 1));  // now they are used again
}

TEST_F(BatchPrefetcherTest, WhatReadingThrowsReachesTheCaller) {
  BatchPrefetcher prefetcher(reader_, 1, 8, 3, [](std::int64_t i) {
    if (i == 1) fail(ExitCode::kIo, "the disk is gone");
    return i;
  });
  EXPECT_EQ(first_tokens(prefetcher.next()), first_tokens(0, 1));
  prefetcher.give_back({});
  EXPECT_EQ(test::error_of([&] { prefetcher.next(); }), "the disk is gone");
}

TEST_F(BatchPrefetcherTest, MayEndBeforeItsLastMicroBatch) {
  BatchPrefetcher unused(reader_, 1, 8, 1000, [](std::int64_t i) { return i; });
  BatchPrefetcher used(reader_, 1, 8, 1000, [](std::int64_t i) { return i; });
  EXPECT_EQ(first_tokens(used.next()), first_tokens(0, 1));
}

}  // namespace
}  // namespace ttt::launch
