#include "dist/gradient_sum.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>

#include "core/base/timer.h"
#include "kernels/adamw.h"
#include "kernels/copy.h"
#include "tests/dist/backend.h"
#include "tests/dist/tree_values.h"

namespace ttt::dist {
namespace {

// Buckets of many blocks, of less than one, and of a single element.
const std::vector<FlatRange> kBuckets = {
    {0, 30'000}, {30'000, 30'001}, {30'001, 33'001}, {33'001, 80'007}};
constexpr std::int64_t kCount = 80'007;

/// The world as data x sequence.
struct Axes {
  explicit Axes(int sequence_ranks) {
    Communicator& world = test::world();
    data = test::make_backend(world.rank() % sequence_ranks);
    sequence = test::make_backend(world.rank() / sequence_ranks);
  }
  [[nodiscard]] std::vector<Communicator*> list() const { return {data.get(), sequence.get()}; }

  std::unique_ptr<Communicator> data, sequence;
};

struct Variant {
  bool shard_optimizer, overlap;
  bool is_eager = false;  // the second queue of the device of tests/support/lazy_device.h
};
const std::vector<Variant> kVariants = {
    {true, true},       {true, false},       {false, true}, {false, false},
#ifdef TTT_TEST_NCCL
    {true, true, true}, {false, true, true},
#endif
};

GradientSumOptions options_of(const Variant& variant) {
  GradientSumOptions options;
  options.shard_optimizer = variant.shard_optimizer;
  options.overlap = variant.overlap;
  options.make_stream = [variant] { return test::make_backend_stream(variant.is_eager); };
  return options;
}

/// The number that tells the gradient of a shard and a part of the sequence from all others.
std::int64_t leaf(std::int64_t shard, int sequence_rank) { return shard + 1000 * sequence_rank; }

/// This rank's shards.
template <typename T>
std::vector<Tensor> local_gradients(const Axes& axes, std::int64_t local_shards) {
  std::vector<Tensor> gradients;
  for (std::int64_t s = 0; s < local_shards; ++s) {
    gradients.emplace_back(Shape{kCount}, kDType<T>);
    std::ranges::copy(
        shard_gradient<T>(leaf(axes.data->rank() * local_shards + s, axes.sequence->rank()),
                          kCount),
        gradients.back().template data<T>());
  }
  return gradients;
}

/// What a step does up to the sum: the last shard's gradient appears layer by layer, from the end.
TensorView run_step(GradientSum& sum, const std::vector<Tensor>& gradients, Stream& stream) {
  for (const Tensor& gradient : gradients) {
    const TensorView slot = sum.slot(stream);
    const bool is_last = &gradient == &gradients.back();
    if (is_last) sum.expect_final();
    for (std::int64_t end = kCount; end > 0;) {
      const std::int64_t begin = std::max<std::int64_t>(0, end - 13'000);
      kernels::copy(gradient.view().slice(begin, end), slot.slice(begin, end), stream);
      sum.after_gradients(begin, stream);
      end = begin;
    }
    if (!is_last) sum.push(stream);
  }
  const TensorView result = sum.finish(stream);
  stream.synchronize();
  return result;
}

/// Over the data ranks' shards by the tree, then over the parts of the sequence by the tree.
template <typename T>
std::vector<T> expected_sum(std::int64_t shards, int sequence_ranks) {
  std::vector<std::vector<T>> parts;
  for (int s = 0; s < sequence_ranks; ++s) {
    std::vector<std::vector<T>> leaves;
    for (std::int64_t v = 0; v < shards; ++v)
      leaves.push_back(shard_gradient<T>(leaf(v, s), kCount));
    parts.push_back(tree_sum(leaves));
  }
  return tree_sum(parts);
}

double squares_of_buckets(const std::vector<float>& sum) {
  double total = 0;
  Stream stream;
  for (const FlatRange& bucket : kBuckets) {
    const std::int64_t blocks =
        (bucket.size() + kernels::kSquaresBlock - 1) / kernels::kSquaresBlock;
    const Tensor part({bucket.size()}, DType::kF32);
    std::copy(sum.begin() + bucket.begin, sum.begin() + bucket.end, part.data<float>());
    const Tensor squares({blocks}, DType::kF64);
    kernels::block_sums_of_squares(part, squares, stream);
    for (const double block : squares.span<double>()) total += block;
  }
  return total;
}

template <typename T>
void expect_sums(int sequence_ranks, std::int64_t local_shards) {
  Stream stream = test::make_backend_stream();
  const Axes axes(sequence_ranks);
  const auto expected = expected_sum<T>(axes.data->size() * local_shards, sequence_ranks);
  const std::vector<Tensor> gradients = local_gradients<T>(axes, local_shards);
  for (const Variant& variant : kVariants) {
    GradientSum sum(kBuckets, kDType<T>, options_of(variant), axes.list());
    for (int step = 0; step < 2; ++step) {
      const TensorView result = run_step(sum, gradients, stream);
      for (const FlatRange& range : sum.updated()) {
        ASSERT_TRUE(range.size() == 0 ||
                    std::memcmp(result.data<T>() + range.begin, expected.data() + range.begin,
                                static_cast<std::size_t>(range.size()) * sizeof(T)) == 0)
            << variant.shard_optimizer << variant.overlap << " [" << range.begin << ", "
            << range.end << ")";
      }
      if constexpr (std::is_same_v<T, float>) {
        const TensorView squares = sum.sum_of_squares(stream);
        stream.synchronize();
        ASSERT_EQ(*squares.data<double>(), squares_of_buckets(expected));
      }
    }
  }
}

TEST(GradientSum, HasTheBitsOfThePlainTreeWhateverItsOptions) {
  expect_sums<float>(1, 1);
  expect_sums<double>(1, 2);
  expect_sums<float>(1, 4);
}

TEST(GradientSum, AddsDataRanksThenSequenceRanks) {
  const int size = test::world().size();
  if (size % 2 == 0) expect_sums<float>(2, 2);
  expect_sums<float>(size, 2);
}

// Each rank learns of its own gradient only, whose first bad element lies elsewhere on each; rank 0 has none.
TEST(GradientSum, EveryRankFindsItsOwnElementThatIsNotFinite) {
  Stream stream = test::make_backend_stream();
  const Axes axes(1);
  const int rank = test::world().rank();
  const std::vector<Tensor> good = local_gradients<float>(axes, 2);
  const std::vector<Tensor> bad = local_gradients<float>(axes, 2);
  const std::int64_t place =
      30'000 - 7'000 * (rank % 4);  // in the first bucket or the one of a single element
  if (rank > 0) {
    bad[static_cast<std::size_t>(rank % 2)].data<float>()[place] = INFINITY;
    bad[0].data<float>()[70'000] = NAN;
  }
  const auto find = [&](GradientSum& sum, const std::vector<Tensor>& gradients) {
    run_step(sum, gradients, stream);
    const TensorView first = sum.first_non_finite(stream);
    const TensorView squares = sum.sum_of_squares(stream);
    stream.synchronize();
    return std::pair(*first.data<double>(), std::isfinite(*squares.data<double>()));
  };
  const double expected = rank > 0 ? static_cast<double>(place) : INFINITY;
  for (const Variant& variant : kVariants) {
    GradientSum sum(kBuckets, DType::kF32, options_of(variant), axes.list());
    EXPECT_EQ(find(sum, bad), std::pair(expected, test::world().size() == 1));
    EXPECT_EQ(find(sum, good), std::pair(double{INFINITY}, true));
  }
}

TEST(GradientSum, OwnersCoverTheBufferOnce) {
  const Axes axes(test::world().size() % 2 == 0 ? 2 : 1);
  const GradientSum sum(kBuckets, DType::kF32, {}, axes.list());
  Stream stream;
  const Tensor owners = Tensor::zeros({kCount}, DType::kI64);
  ASSERT_EQ(sum.owned().size(), kBuckets.size());
  for (std::size_t i = 0; i < kBuckets.size(); ++i) {
    const FlatRange range = sum.owned()[i];
    EXPECT_TRUE(range.size() == 0 ||
                (range.begin >= kBuckets[i].begin && range.end <= kBuckets[i].end));
    EXPECT_EQ((range.begin - kBuckets[i].begin) % kernels::kSquaresBlock, 0) << "a block is cut";
    for (std::int64_t k = range.begin; k < range.end; ++k) owners.data<std::int64_t>()[k] += 1;
  }
  test::world().all_reduce_sum(owners, stream);
  for (const std::int64_t count : owners.span<std::int64_t>()) ASSERT_EQ(count, 1);
}

TEST(GradientSum, EveryRankGetsAllUpdatedParameters) {
  for (const Variant& variant : kVariants) {
    const Axes axes(test::world().size() % 2 == 0 ? 2 : 1);
    GradientSum sum(kBuckets, DType::kF32, options_of(variant), axes.list());
    Stream stream = test::make_backend_stream();
    const Tensor values({kCount}, DType::kF32);
    const std::span<float> data = values.span<float>();
    for (int step = 1; step <= 3; ++step) {
      stream.synchronize();
      for (const FlatRange& range : sum.updated()) {
        for (std::int64_t i = range.begin; i < range.end; ++i) {
          data[static_cast<std::size_t>(i)] = static_cast<float>(step * 1000 + i % 997);
        }
      }
      sum.gather_parameters(values, stream);
      for (std::int64_t begin = 0; begin < kCount;) {  // as forward reads them
        const std::int64_t end = std::min(kCount, begin + 11'000);
        sum.before_reading(end, stream);
        stream.synchronize();
        for (; begin < end; ++begin) {
          ASSERT_EQ(data[static_cast<std::size_t>(begin)],
                    static_cast<float>(step * 1000 + begin % 997));
        }
      }
      test::world().barrier();  // before the next update overwrites what others still compare
    }
  }
}

// Reducing sends everything but the rank's own part, gathering what reaches the others: 2 n (P - 1) / P.
TEST(GradientSum, TrafficIsThatOfTheFormula) {
  const int size = test::world().size();
  const std::int64_t count = size * 3 * kernels::kSquaresBlock;  // parts of equal size
  const Axes axes(1);
  for (const Variant& variant : kVariants) {
    GradientSum sum({{0, count}}, DType::kF32, options_of(variant), axes.list());
    const std::int64_t before = sum.bytes_sent();
    Stream stream = test::make_backend_stream();
    const TensorView slot = sum.slot(stream);
    sum.expect_final();
    sum.after_gradients(0, stream);
    sum.finish(stream);
    sum.gather_parameters(slot, stream);
    sum.wait_for_parameters(stream);
    stream.synchronize();
    EXPECT_EQ(sum.bytes_sent() - before, 2 * 4 * (count - count / size));
  }
}

#ifdef TTT_TEST_NCCL
// The first exchange of two ranks may keep the host until the peer comes to it: not while backward goes on.
TEST(GradientSum, NothingIsSentWithinTheFirstBackwardPass) {
  const Axes axes(1);
  Stream stream = test::make_backend_stream();
  GradientSum sum(kBuckets, DType::kF32, options_of({true, true}), axes.list());
  const std::vector<Tensor> gradients = local_gradients<float>(axes, 1);
  for (const bool is_first : {true, false}) {
    const TensorView slot = sum.slot(stream);
    const std::int64_t before = sum.bytes_sent();
    sum.expect_final();
    kernels::copy(gradients[0], slot, stream);
    sum.after_gradients(0, stream);
    const bool is_alone = axes.data->size() == 1;
    EXPECT_EQ(sum.bytes_sent() == before, is_first || is_alone);
    sum.finish(stream);
    EXPECT_EQ(sum.bytes_sent() == before, is_alone);
    stream.synchronize();
  }
}

// The gathers are queued and not done when the work begins: the stream does them, or waits for them, before its own.
TEST(GradientSum, WhatADeviceWaitsForIsNotItsWork) {
  for (const bool overlap : {true, false}) {
    const Axes axes(1);
    GradientSum sum(kBuckets, DType::kF32, options_of({true, overlap}), axes.list());
    Stream stream = test::make_backend_stream();
    const Tensor values = Tensor::zeros({kCount}, DType::kF32);
    stream.synchronize();
    sum.gather_parameters(values, stream);
    WorkTimer work;
    work.mark(stream);
    sum.time_waits(&work);
    sum.wait_for_parameters(stream);
    constexpr int kCopies = 5;
    for (int i = 0; i < kCopies; ++i)
      kernels::copy(values.view().slice(0, 1), values.view().slice(1, 2), stream);
    sum.time_waits(nullptr);
    work.mark(stream);
    stream.synchronize();
    EXPECT_EQ(work.seconds(),
              1 + kCopies + 1);  // with the marks that end the two parts of the work
  }
}
#endif

#ifndef TTT_TEST_NCCL  // where calls block
TEST(GradientSum, SecondsAreCountedWhereTheyAreSpent) {
  const Axes axes(1);
  Stream stream;
  for (const bool overlap : {false, true}) {
    GradientSum sum(kBuckets, DType::kF32, options_of({true, overlap}), axes.list());
    run_step(sum, local_gradients<float>(axes, 1), stream);
    const GradientSum::Seconds seconds = sum.take_seconds();
    EXPECT_EQ(seconds.total > 0, test::world().size() > 1);
    if (!overlap) {
      EXPECT_EQ(seconds.total, seconds.exposed);
    }
    EXPECT_EQ(sum.take_seconds().total, 0);
  }
}

TEST(GradientSum, ASilentPeerDoesNotKeepAFailedRankFromLeaving) {
  Communicator& world = test::world();
  if (world.size() == 1) return;  // no peer to wait for
  const Axes axes(1);
  Stream stream;
  const Timer timer;
  if (world.rank() == 0) {
    GradientSum sum({{0, 20'000}, {20'000, kCount}}, DType::kF32, {}, axes.list());
    sum.slot(stream);
    sum.expect_final();
    sum.after_gradients(20'000, stream);  // the others never answer
  } else {
    const GradientSum sum({{0, 20'000}, {20'000, kCount}}, DType::kF32, {}, axes.list());
    world.barrier();  // only now is the communicator given up
  }
  if (world.rank() == 0) world.barrier();
  EXPECT_LT(timer.seconds(), 60);
}

#endif

TEST(JobThread, RunsInOrderAndThrowsOnTheCallersThread) {
  std::vector<int> order;
  JobThread thread([&] { order.push_back(-1); });
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(thread.add([&order, i] { order.push_back(i); }), i + 1);
  }
  thread.wait(100);
  for (int i = -1; i < 100; ++i) ASSERT_EQ(order[static_cast<std::size_t>(i + 1)], i);
  const auto message_of = [](const auto& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kPeerLost);
      return error.what();
    }
    return "no error";
  };
  thread.add([] { fail(ExitCode::kPeerLost, "rank 3 is gone"); });
  (void)message_of(
      [&] { thread.add([&] { order.push_back(7); }); });  // throws if that was seen already
  EXPECT_EQ(message_of([&] { thread.wait(102); }), "rank 3 is gone");
  EXPECT_EQ(message_of([&] { thread.add([] {}); }), "rank 3 is gone");
  EXPECT_EQ(message_of([&] { thread.check(); }), "rank 3 is gone");
  EXPECT_EQ(order.back(), 99) << "a job ran after the failed one";
}

}  // namespace
}  // namespace ttt::dist
