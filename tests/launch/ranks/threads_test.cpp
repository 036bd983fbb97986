// Threads that work beside the computing one, as runs use them: what they share is what ThreadSanitizer looks at in
// `thread_race` (tests/CMakeLists.txt).

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <thread>

#include "core/base/log.h"
#include "data/tokens/tokenize_pipeline.h"
#include "dist/watchdog.h"
#include "launch/checkpoint_saver.h"
#include "tests/data/checkpoint_fixture.h"
#include "tests/launch/temporary_directory.h"
#include "tests/support/mpi_world.h"

namespace ttt::launch {
namespace {

dist::Communicator& world() { return test::world(); }

// Rank 0's.
std::string shared_path(const test::TemporaryDirectory& mine) {
  return world().gather_strings(mine.path()).front();
}

void multiply(const data::State& state, float factor) {
  for (const Tensor* part : {&state.values, &state.m, &state.v}) {
    for (float& value : part->span<float>()) value *= factor;
  }
}

// Step n's state is the numbers times 2^n. One that is due before the last is durable waits for it.
TEST(CheckpointSaverThread, WritesTheStateOfItsStepWhileTheNextOnesChangeIt) {
  constexpr std::int64_t kSteps = 12;
  constexpr std::int64_t kInterval = 3;
  const test::TemporaryDirectory directory;
  CheckpointSaver::Options options;
  options.run_directory = shared_path(directory);
  options.keep_last = kSteps;
  options.asynchronous = true;
  options.before_commit = [] { log::info("commits"); };
  data::State state;
  state.fill_with_numbers();
  Stream stream;
  CheckpointSaver saver(options, state.flat(),
                        {data::even_range(state.values.numel(), world().rank(), world().size())},
                        world());
  for (std::int64_t step = 1; step <= kSteps; ++step) {
    multiply(state, 2);
    if (step % kInterval == 0) {
      saver.begin(data::manifest_of(state, step, world().size()), stream);
    }
    saver.poll();
  }
  saver.finish();
  const std::vector<data::CheckpointLocation> found = data::list_checkpoints(options.run_directory);
  ASSERT_EQ(std::ssize(found), kSteps / kInterval);
  for (const data::CheckpointLocation& checkpoint : found) {
    data::State expected;
    expected.fill_with_numbers();
    multiply(expected, std::exp2(static_cast<float>(checkpoint.step)));
    const data::State loaded;
    data::load(checkpoint.directory, loaded);
    EXPECT_TRUE(data::equal_bits(loaded.values, expected.values)) << checkpoint.step;
    EXPECT_TRUE(data::equal_bits(loaded.m, expected.m)) << checkpoint.step;
    EXPECT_TRUE(data::equal_bits(loaded.v, expected.v)) << checkpoint.step;
  }
  world().barrier();  // rank 0's directory goes
}

// Limits that no busy machine reaches; the thread still looks often. Between its writes the rank leaves it the time to.
TEST(WatchdogThread, ReadsWhatTheRankWrites) {
  dist::Watchdog watchdog(world(), {2, {60, 60, 60, 60}, {}});
  const auto pause = [] { std::this_thread::sleep_for(std::chrono::milliseconds(300)); };
  const Tensor values = Tensor::zeros({100}, DType::kF64);
  Stream stream;
  for (int i = 0; i < 2; ++i) {
    const dist::PhaseScope scope(watchdog.record(), dist::Phase::kStep);
    pause();
    watchdog.record().mark_progress();
    pause();
    world().all_reduce_sum(values, stream);
    pause();
  }
  EXPECT_GT(watchdog.record().activity().num_operations, 0);
  watchdog.finish();
}

// Batches hold 512 documents.
TEST(TokenizeThreads, GiveTheDocumentsInTheirOrder) {
  constexpr std::int64_t kDocuments = 20'000;
  const std::unique_ptr<data::Tokenizer> tokenizer = data::open_tokenizer("bytes");
  std::int64_t consumed = 0;
  data::TokenizeSteps steps;
  steps.produce = [&](const data::PushItem& push) {
    for (std::int64_t i = 0; i < kDocuments; ++i) {
      data::CorpusItem item;
      item.number = i;
      item.document.text = std::to_string(i);
      push(std::move(item));
    }
  };
  steps.judge = [](data::CorpusItem& item) {
    item.is_validation = item.document.text.back() == '7';
  };
  steps.consume = [&](const data::CorpusItem& item, std::span<const std::int32_t> ids) {
    ASSERT_EQ(item.number, consumed++);
    ASSERT_EQ(tokenizer->decode(ids), std::to_string(item.number));
    ASSERT_EQ(item.is_validation, item.number % 10 == 7);
  };
  data::tokenize_in_order(*tokenizer, 3, steps);
  EXPECT_EQ(consumed, kDocuments);
  steps.consume = [](const data::CorpusItem& item, std::span<const std::int32_t>) {
    if (item.number == 1000) fail(ExitCode::kIo, "the disk is full");
  };
  EXPECT_THROW(data::tokenize_in_order(*tokenizer, 3, steps), Error);
}

}  // namespace
}  // namespace ttt::launch
