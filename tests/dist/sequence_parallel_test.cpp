// Sequences split over ranks give the losses and gradients of whole ones: every mixer, both forms of exchange, every
// grid of these ranks. Each rank also computes the whole batch alone, which is what it compares with.

#include <gmock/gmock.h>

#include <cmath>
#include <map>

#include "core/base/memory.h"
#include "dist/process_grid.h"
#include "dist/sequence_exchange.h"
#include "dist/tree_collectives.h"
#include "kernels/copy.h"
#include "tests/core/model_cases.h"
#include "tests/support/mpi_world.h"
#ifdef TTT_TEST_CUDA
#include "tests/support/kernel_check.h"
#endif

namespace ttt::dist {
namespace {

using config::ParallelConfig;
using test::ModelCase;
using test::SmallModel;

config::RunConfig run_config(const config::ModelConfig& model, std::int64_t tokens,
                             std::int64_t sequence_ranks,
                             ParallelConfig::SequenceExchange exchange) {
  config::RunConfig config;
  *config.mutable_model() = model;
  config.mutable_data()->set_context_length(tokens);
  config.mutable_parallel()->set_sequence_ranks(sequence_ranks);
  config.mutable_parallel()->set_sequence_exchange(exchange);
  return config;
}

struct Result {
  Tensor nll;        // [B, T]
  Tensor gradients;  // the sum over the grid
};

// The batch of `small` on a grid: rows over its data ranks, segments over its sequence ranks.
Result run_on_grid(SmallModel& small, const ProcessGrid& grid, const config::RunConfig& config,
                   bool recompute_blocks, Context context) {
  const std::int64_t batch = small.ids.size(0);
  const std::int64_t length = small.ids.size(1);
  const std::int64_t rows = batch / grid.data().size();
  const std::int64_t row = grid.data().rank() * rows;
  const auto sequence = make_sequence_exchange(sequence_split(config), grid.sequence());
  const std::int64_t begin = sequence ? sequence->begin() : 0;
  const std::int64_t end = sequence ? sequence->end() : length;
  const auto part = [&](const Tensor& whole) {
    const Tensor segment = test::tokens_of(whole, begin, end);
    return to_dtype(segment.view().slice(row, row + rows), whole.dtype());
  };
  const Tensor ids = part(small.ids);
  const Tensor targets = part(small.targets);
  const Tensor weight = part(small.weight);
  const Tensor nll = test::unset(ids.shape(), DType::kF64);
  context.sequence = sequence.get();
  context.stream.synchronize();
  fill(small.gradients, 0);
  small.model.forward_backward({ids, targets, weight}, nll, recompute_blocks, context);
  Result result{Tensor::zeros({batch, length}, DType::kF64),
                to_dtype(small.gradients, small.gradients.dtype())};
  context.stream.synchronize();
  copy(small.gradients, result.gradients);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t t = begin; t < end; ++t) {
      result.nll.data<double>()[(row + r) * length + t] =
          nll.data<double>()[r * (end - begin) + t - begin];
    }
  }
  grid.world().all_reduce_sum(result.nll, context.stream);
  const FlatRange all{0, result.gradients.numel()};
  TreeCollectives sum({&grid.data(), &grid.sequence()}, 1, {all}, result.gradients.dtype());
  sum.reduce_scatter(result.gradients, all, context.stream);
  sum.all_gather(result.gradients, all, context.stream);
  context.stream.synchronize();
  return result;
}

double relative_difference(const TensorView& actual, const TensorView& expected) {
  const Tensor a = to_dtype(actual, DType::kF64);
  const Tensor e = to_dtype(expected, DType::kF64);
  double difference = 0;
  double norm = 0;
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    difference += std::pow(a.data<double>()[i] - e.data<double>()[i], 2);
    norm += std::pow(e.data<double>()[i], 2);
  }
  return std::sqrt(difference) / std::max(std::sqrt(norm), 1e-6);
}

void expect_equal(const Result& actual, const Result& expected, const ParameterStore& store,
                  double tolerance) {
  EXPECT_LE(relative_difference(actual.nll, expected.nll), tolerance) << "nll";
  std::int64_t begin = 0;
  for (const Parameter& parameter : store.all()) {
    const std::int64_t end = begin + parameter.shape.numel();
    EXPECT_LE(relative_difference(actual.gradients.view().slice(begin, end),
                                  expected.gradients.view().slice(begin, end)),
              tolerance)
        << "gradient of " << parameter.name;
    begin = end;
  }
}

// Made once, since a grid costs collectives, and never destroyed: MPI ends before statics do.
const ProcessGrid& grid_of(int sequence_ranks) {
  static auto& grids = *new std::map<int, ProcessGrid>;
  return grids.try_emplace(sequence_ranks, test::world(), sequence_ranks).first->second;
}

// Calls f(grid, config, name) for every grid of the world and both forms, where the program would allow them.
template <typename F>
int for_each_split(const config::ModelConfig& model, std::int64_t tokens, F&& f) {
  Communicator& world = test::world();
  int num_splits = 0;
  for (int sequence_ranks = 1; sequence_ranks <= world.size(); ++sequence_ranks) {
    if (world.size() % sequence_ranks != 0) continue;
    for (const auto exchange : {ParallelConfig::STATE_PASSING, ParallelConfig::HEAD_EXCHANGE}) {
      const config::RunConfig config = run_config(model, tokens, sequence_ranks, exchange);
      if (!config::find_sequence_problems(config, world.size()).empty()) continue;
      if (sequence_ranks == 1 && exchange == ParallelConfig::HEAD_EXCHANGE)
        continue;  // is the other
      const ProcessGrid& grid = grid_of(sequence_ranks);
      ++num_splits;
      f(grid, config,
        fmt::format("{} x {} {}", grid.data().size(), sequence_ranks,
                    ParallelConfig::SequenceExchange_Name(exchange)));
    }
  }
  return num_splits;
}

#ifndef TTT_TEST_CUDA

class SequenceParallel : public testing::TestWithParam<ModelCase> {};

// The published backbones of every mixer; on two ranks, which need the least messages, all variants.
std::vector<ModelCase> cases() {
  std::vector<ModelCase> result = test::model_cases();
  std::erase_if(result, [](const ModelCase& model_case) {
    const std::string mixer = test::camel_case(config::Mixer_Name(model_case.model.mixer()));
    const std::string variant = model_case.name.substr(mixer.size());
    const bool is_first = variant.starts_with("Transformer") || variant.starts_with("Mamba");
    const bool is_published = variant.find("Mamba") != std::string::npos || is_first;
    return !(test::world().size() == 2 ? is_published : is_first);
  });
  return result;
}

INSTANTIATE_TEST_SUITE_P(Models, SequenceParallel, testing::ValuesIn(cases()), test::case_name);

// 13 tokens in mini-batches of 4: segments differ, the last mini-batch is short.
TEST_P(SequenceParallel, LossAndGradientsAreThoseOfWholeSequences) {
  const config::ModelConfig& model = GetParam().model;
  SmallModel small(model, DType::kF64, test::kTokens, std::max(2, test::world().size()));
  small.context.inner_lr_multiplier = 0.75;
  Result whole;
  whole.nll = small.forward_backward();
  whole.gradients = to_dtype(small.gradients, DType::kF64);
  // A state of zeros gives the first LayerNorms rows of zeros, which they divide by sqrt(epsilon) = 1e-3.
  const bool is_steep = model.ttt().initial_state() == config::TttConfig::ZERO;
  const double tolerance = is_steep ? 1e-10 : 1e-12;
  const int splits =
      for_each_split(model, test::kTokens, [&](const auto& grid, const auto& config, auto name) {
        SCOPED_TRACE(name);
        const Result split = run_on_grid(small, grid, config, false, small.context);
        expect_equal(split, whole, small.model.parameters(), tolerance);
        // Recomputation takes what the first forward received: the same bits.
        const Result again = run_on_grid(small, grid, config, true, small.context);
        EXPECT_TRUE(test::same_bits(again.nll, split.nll)) << "recomputed blocks";
        EXPECT_TRUE(test::same_bits(again.gradients, split.gradients)) << "recomputed blocks";
      });
  EXPECT_GE(splits, 1);
}

// Passing the state on changes no order of additions: forward has the same bits, in fp32 too. Twelve sequences keep
// every rank above the few rows that products treat differently (kernels/cpu/few_rows.h).
TEST_P(SequenceParallel, StatePassingHasTheBitsOfWholeSequences) {
  const config::ModelConfig& model = GetParam().model;
  if (model.mixer() != config::TTT_LINEAR && model.mixer() != config::TTT_MLP) return;
  SmallModel small(model, DType::kF32, test::kTokens, 12);
  const Tensor whole = small.forward_backward();
  for_each_split(model, test::kTokens, [&](const auto& grid, const auto& config, auto name) {
    if (config.parallel().sequence_exchange() != ParallelConfig::STATE_PASSING) return;
    const Result split = run_on_grid(small, grid, config, false, small.context);
    EXPECT_TRUE(test::same_bits(split.nll, whole)) << name;
  });
}

config::ModelConfig ttt_model() {
  return test::model_of({"vocab_size=17", "hidden_size=32", "intermediate_size=64", "num_layers=3",
                         "num_heads=4", "use_gate=true", "share_qk=true", "pre_conv=true"});
}

// What forward and backward need beside weights and gradients, on this rank.
std::int64_t activation_bytes(const ProcessGrid& grid, std::int64_t tokens,
                              ParallelConfig::SequenceExchange exchange) {
  const config::RunConfig config =
      run_config(ttt_model(), tokens, grid.sequence().size(), exchange);
  SmallModel small(ttt_model(), DType::kF32, tokens, 1);
  const auto sequence = make_sequence_exchange(sequence_split(config), grid.sequence());
  const std::int64_t end = sequence ? sequence->end() : tokens;
  const std::int64_t begin = sequence ? sequence->begin() : 0;
  const Tensor ids = test::tokens_of(small.ids, begin, end);
  const Tensor targets = test::tokens_of(small.targets, begin, end);
  const Tensor weight = test::tokens_of(small.weight, begin, end);
  const Tensor nll(ids.shape(), DType::kF64);
  Context context = small.context;
  context.sequence = sequence.get();
  memory::reset_peak();
  const std::int64_t before = memory::live_bytes();
  small.model.forward_backward({ids, targets, weight}, nll, false, context);
  return memory::peak_bytes() - before;
}

TEST(SequenceParallelMemory, FallsWithTheNumberOfRanks) {
  constexpr std::int64_t kLong = 4096;
  const int size = test::world().size();
  if (4 % size != 0) return;  // heads, and segments of equal size
  const auto single = make_single_communicator();
  const ProcessGrid alone(*single, 1);
  const ProcessGrid grid(test::world(), size);
  const auto whole =
      static_cast<double>(activation_bytes(alone, kLong, ParallelConfig::STATE_PASSING));
  for (const auto exchange : {ParallelConfig::STATE_PASSING, ParallelConfig::HEAD_EXCHANGE}) {
    const auto part = static_cast<double>(activation_bytes(grid, kLong, exchange));
    // Head exchange keeps the core's output twice and has two buffers of its own at a time.
    const double limit = exchange == ParallelConfig::STATE_PASSING ? 1.1 : 1.3;
    EXPECT_LE(part, limit * whole / size) << ParallelConfig::SequenceExchange_Name(exchange);
  }
}

// A segment's halo is what its neighbour holds, and its gradient arrives there.
TEST(SequenceExchange, HalosGoToTheNextRankAndBack) {
  Communicator& world = test::world();
  const int size = world.size();
  if (size == 1) return;  // null exchange
  const config::RunConfig config = run_config(test::model_of({"mixer=LINEAR_ATTENTION"}),
                                              5 * size + 1, size, ParallelConfig::STATE_PASSING);
  const auto sequence = make_sequence_exchange(sequence_split(config), world);
  Stream stream;
  Context context{stream};
  context.sequence = sequence.get();
  const std::int64_t tokens = sequence->end() - sequence->begin();
  const Tensor x({2, tokens, 1}, DType::kF64);
  const auto value = [](std::int64_t b, std::int64_t t) {
    return static_cast<double>(100 * b + t);
  };
  for (std::int64_t i = 0; i < 2 * tokens; ++i) {
    x.data<double>()[i] = value(i / tokens, sequence->begin() + i % tokens);
  }
  const Tensor halo = exchange_halo(x, 3, context);
  EXPECT_EQ(halo.empty(), sequence->is_first());
  for (std::int64_t i = 0; !halo.empty() && i < 6; ++i) {
    EXPECT_EQ(halo.data<double>()[i], value(i / 3, sequence->begin() - 3 + i % 3));
  }
  return_halo(halo, 3, x, context);
  for (std::int64_t i = 0; i < 2 * tokens; ++i) {
    const bool is_doubled = !sequence->is_last() && i % tokens >= tokens - 3;
    EXPECT_EQ(x.data<double>()[i],
              value(i / tokens, sequence->begin() + i % tokens) * (is_doubled ? 2 : 1));
  }
}

TEST(SequenceExchange, HeadsAndTokensAreInverse) {
  Communicator& world = test::world();
  const int size = world.size();
  if (size == 1) return;  // null exchange
  const std::int64_t length = 3 * size + 2;
  const config::RunConfig config =
      run_config(test::model_of({"mixer=ATTENTION"}), length, size, ParallelConfig::HEAD_EXCHANGE);
  const auto sequence = make_sequence_exchange(sequence_split(config), world);
  Stream stream;
  Context context{stream};
  context.sequence = sequence.get();
  const std::int64_t tokens = sequence->end() - sequence->begin();
  const std::int64_t channels = 3 * size;
  const Tensor x({2, tokens, channels}, DType::kF32);
  const auto value = [&](std::int64_t b, std::int64_t t, std::int64_t c) {
    return static_cast<float>((b * length + t) * channels + c);
  };
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    x.data<float>()[i] =
        value(i / (tokens * channels), sequence->begin() + i / channels % tokens, i % channels);
  }
  const Tensor y = tokens_to_heads(x, context);
  ASSERT_EQ(y.shape(), Shape({2, length, 3}));
  for (std::int64_t i = 0; i < y.numel(); ++i) {
    ASSERT_EQ(y.data<float>()[i],
              value(i / (length * 3), i / 3 % length, 3 * world.rank() + i % 3));
  }
  EXPECT_TRUE(test::same_bits(heads_to_tokens(y, context), x));
}

#else

// MPI cannot reach a device's memory: sums of gradients go through pinned memory.
TEST(CudaGradients, AreSummedWhereOnlyKernelsReachThem) {
  const int size = test::world().size();
  Stream stream = test::stream();
  const FlatRange all{0, 20000};
  const Tensor host({all.end}, DType::kF32);
  Tensor flat;
  {
    const memory::Scope scope({"gradients"}, memory::Place::kDevice);
    flat = Tensor(host.shape(), host.dtype());
  }
  for (std::int64_t i = 0; i < all.end; ++i) {
    host.data<float>()[i] = static_cast<float>(i * (test::world().rank() + 1));
  }
  kernels::copy(host, flat, stream);
  const ProcessGrid& grid = grid_of(1);
  TreeCollectives sum({&grid.data()}, 8192, {all}, flat.dtype());
  for (int repeat = 0; repeat < 2; ++repeat) {
    sum.reduce_scatter(flat, all, stream);
    sum.all_gather(flat, all, stream);
  }
  kernels::copy(flat, host, stream);
  stream.synchronize();
  const int terms = size * (size + 1) / 2;  // and the second time, of each rank's equal sum
  for (std::int64_t i = 0; i < all.end; i += 97) {
    ASSERT_EQ(host.data<float>()[i], static_cast<float>(i * terms * size));
  }
}

// The fused kernels' shapes, on a device or its emulator: segments of whole mini-batches, the last one short.
class CudaSequenceParallel : public testing::TestWithParam<std::string> {};

TEST_P(CudaSequenceParallel, LossAndGradientsAreThoseOfWholeSequences) {
  constexpr std::int64_t kLength = 53;
  const config::ModelConfig model = test::model_of(
      {"vocab_size=17", "hidden_size=128", "intermediate_size=64", "num_layers=1", "num_heads=2",
       "mixer=" + GetParam(), "use_gate=true", "share_qk=true", "pre_conv=true"});
  SmallModel small(model, DType::kF32, kLength, std::max(2, test::world().size()));
  Stream stream = test::stream();
  for (const auto precision : {kernels::Precision::kNative, kernels::Precision::kBF16}) {
    Context context{stream, precision};
    Result whole;
    whole.nll = Tensor(small.ids.shape(), DType::kF64);
    fill(small.gradients, 0);
    small.model.forward_backward(small.batch(), whole.nll, false, context);
    stream.synchronize();
    whole.gradients = to_dtype(small.gradients, DType::kF32);
    // fp32: sums over tokens in another order. bf16: the halo's gradient is rounded once more, and the gradients of the inner
    // rate, which are small differences of large sums, show it most: up to 3.7e-2 of their norm, TTT-MLP.
    const double tolerance = precision == kernels::Precision::kNative ? 2e-5 : 5e-2;
    const int splits =
        for_each_split(model, kLength, [&](const auto& grid, const auto& config, auto name) {
          SCOPED_TRACE(name);
          expect_equal(run_on_grid(small, grid, config, true, context), whole,
                       small.model.parameters(), tolerance);
        });
    EXPECT_GE(splits, 1);
  }
}

// The host, and so MPI, cannot touch a device's own memory.
TEST(CudaSums, OfADevicesOwnMemoryGoByWayOfTheHost) {
  Communicator& world = test::world();
  Stream stream = test::stream();
  const memory::Scope scope({"a test"}, memory::Place::kDevice);
  const Tensor values({1000}, DType::kF64);
  kernels::fill(values, world.rank() + 1, stream);
  world.all_reduce_sum(values, stream);
  const memory::Scope of_host({"a test"}, memory::Place::kPinned);
  const Tensor sums({1000}, DType::kF64);
  kernels::copy(values, sums, stream);
  stream.synchronize();
  const double expected = 0.5 * world.size() * (world.size() + 1);
  for (const double sum : sums.span<double>()) ASSERT_EQ(sum, expected);
}

INSTANTIATE_TEST_SUITE_P(Mixers, CudaSequenceParallel,
                         testing::Values("TTT_LINEAR", "TTT_MLP", "ATTENTION", "LINEAR_ATTENTION"),
                         [](const auto& test) { return test.param; });

#endif

}  // namespace
}  // namespace ttt::dist
