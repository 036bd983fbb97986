// data.reset_at_bos on ranks that hold windows together: losses and gradients are those of one rank, for every mixer, both
// forms of exchange and every grid of these ranks. Each rank also runs all documents alone, which it compares with.

#include <gtest/gtest.h>

#include <cmath>

#include "dist/process_grid.h"
#include "dist/sequence_exchange.h"
#include "launch/evaluation.h"
#include "tests/core/model_cases.h"
#include "tests/launch/temporary_directory.h"
#include "tests/support/mpi_world.h"

namespace ttt::launch {
namespace {

using config::ParallelConfig;

constexpr std::int64_t kBos = 1;
constexpr std::int64_t kLength = 48;
constexpr std::int64_t kRows = 4;
// Row by row: as long as two ranks' share and four ranks' are, and of one token; one token more than these; one that is
// a whole row and goes on in the next, which so begins without BOS. Mini-batches are 4.
constexpr std::int64_t kDocuments[] = {24, 12, 1, 5, 6, 25, 13, 1, 1, 8, 58, 14, 3, 1, 20, 2};

struct Result {
  Tensor nll;        // [rows, T]
  Tensor gradients;  // the sum over the grid
};

void write_documents(const std::string& path) {
  data::TokenShardWriter writer(path, test::kVocabulary, kBos, 2);
  const CounterRng rng(3, "documents");
  std::uint64_t number = 0;
  for (const std::int64_t length : kDocuments) {
    std::vector<std::int32_t> ids{kBos};
    while (std::ssize(ids) < length) {
      ids.push_back(2 + static_cast<std::int32_t>(rng.bits(number++) % 15));
    }
    writer.append_document(ids);
  }
  writer.finish();
}

class SharedDocuments : public testing::TestWithParam<test::ModelCase> {
 protected:
  SharedDocuments() : small_(GetParam().model, DType::kF64) {
    write_documents(directory_.file("tokens.h5"));
    *config_.mutable_model() = GetParam().model;
    config_.mutable_data()->add_train(directory_.file("tokens.h5"));
    config_.mutable_data()->add_validation(directory_.file("tokens.h5"));
    config_.mutable_data()->set_context_length(kLength);
    config_.mutable_data()->set_order(config::DataConfig::SEQUENTIAL);
    config_.mutable_data()->set_reset_at_bos(true);
  }

  // All rows, in micro-batches of as many as fit a data rank. The order of Trainer::run_shard.
  Result train(const config::RunConfig& config, dist::Communicator& world, bool recompute_blocks) {
    const dist::ProcessGrid grid(world, config.parallel().sequence_ranks());
    const auto exchange = dist::make_sequence_exchange(sequence_split(config), grid.sequence());
    const BatchReader reader(config, data::Split::kTrain, exchange.get());
    const std::int64_t rows = kRows / grid.data().size();
    const std::int64_t first = grid.data().rank() * rows;
    const BatchReader::Buffers buffers = reader.make_buffers(rows);
    reader.read(first, kRows, buffers);
    Context context = small_.context;
    context.sequence = exchange.get();
    fill(small_.gradients, 0);
    Result result{Tensor::zeros({kRows, kLength}, DType::kF64), {}};
    const TensorView nll = result.nll.view().slice(first, first + rows);
    // One rank's are not taken from what is tested.
    const std::vector<SequenceRange> sequences =
        exchange ? reader.sequences(buffers.ids) : documents_of(buffers.ids, kBos);
    for (const SequenceRange& range : sequences) {
      SequenceContext of_sequence(context, range);
      small_.model.forward_backward(buffers.batch(range), range.of(nll), recompute_blocks,
                                    of_sequence.get());
    }
    result.gradients = to_dtype(small_.gradients, DType::kF64);
    copy(small_.gradients, result.gradients);
    world.all_reduce_sum(result.nll, context.stream);
    world.all_reduce_sum(result.gradients, context.stream);
    return result;
  }

  // The first rows as held-out windows, two at a time, with the inner losses of TTT layers.
  std::vector<double> evaluate(const config::RunConfig& config, dist::Communicator& world) {
    const dist::ProcessGrid grid(world, config.parallel().sequence_ranks());
    const auto exchange = dist::make_sequence_exchange(sequence_split(config), grid.sequence());
    const BatchReader reader(config, data::Split::kValidation, exchange.get());
    Context context = small_.context;
    context.sequence = exchange.get();
    std::vector<double> numbers;
    const bool is_whole =
        visit_window_losses(small_.model, reader, 3, 2, grid, context, [&](auto nll, auto mask) {
          numbers.insert(numbers.end(), nll.begin(), nll.end());
          numbers.insert(numbers.end(), mask.begin(), mask.end());
        });
    EXPECT_TRUE(is_whole);
    const InnerLosses inner = inner_losses(small_.model, reader, 3, grid.sequence(), context);
    numbers.insert(numbers.end(), inner.sums.begin(), inner.sums.end());
    return numbers;
  }

  // Calls f for every grid of the world that splits windows, in both forms, where the program would allow them.
  template <typename F>
  void for_each_split(F&& f) {
    const int world = test::world().size();
    int num_splits = 0;
    for (int ranks = 2; ranks <= world; ++ranks) {
      if (world % ranks != 0) continue;
      for (const auto exchange : {ParallelConfig::STATE_PASSING, ParallelConfig::HEAD_EXCHANGE}) {
        config::RunConfig config = config_;
        config.mutable_parallel()->set_sequence_ranks(ranks);
        config.mutable_parallel()->set_sequence_exchange(exchange);
        if (!config::find_sequence_problems(config, world).empty()) continue;
        SCOPED_TRACE(fmt::format("{} x {} {}", world / ranks, ranks,
                                 ParallelConfig::SequenceExchange_Name(exchange)));
        f(config);
        ++num_splits;
      }
    }
    EXPECT_GE(num_splits, world / 2) << "at least one form for every grid";
  }

  test::TemporaryDirectory directory_;
  config::RunConfig config_;
  test::SmallModel small_;
  std::unique_ptr<dist::Communicator> alone_ = dist::make_single_communicator();
};

TEST_P(SharedDocuments, LossesAndGradientsAreThoseOfOneRank) {
  const Result whole = train(config_, *alone_, false);
  for_each_split([&](const config::RunConfig& config) {
    const Result shared = train(config, test::world(), false);
    test::expect_close("nll", shared.nll.span<double>(), whole.nll.span<double>(), 1e-12);
    std::int64_t begin = 0;
    for (const Parameter& parameter : small_.model.parameters().all()) {
      const std::int64_t end = begin + parameter.shape.numel();
      test::expect_close("gradient of " + parameter.name,
                         shared.gradients.view().slice(begin, end).span<double>(),
                         whole.gradients.view().slice(begin, end).span<double>(), 1e-12);
      begin = end;
    }
    // Recomputation takes what the first forward received: the same bits.
    const Result again = train(config, test::world(), true);
    EXPECT_TRUE(test::same_bits(again.nll, shared.nll));
    EXPECT_TRUE(test::same_bits(again.gradients, shared.gradients));
  });
}

TEST_P(SharedDocuments, EvaluationIsThatOfOneRank) {
  const std::vector<double> whole = evaluate(config_, *alone_);
  for_each_split([&](const config::RunConfig& config) {
    test::expect_close("losses, masks and inner losses", evaluate(config, test::world()), whole,
                       1e-12);
  });
}

// On four ranks, whose messages take long on few cores, the backbone that has convolutions.
std::vector<test::ModelCase> cases() {
  std::vector<test::ModelCase> result = test::published_cases();
  std::erase_if(result, [](const test::ModelCase& one) {
    return test::world().size() > 2 && !one.model.pre_conv();
  });
  return result;
}

INSTANTIATE_TEST_SUITE_P(EveryMixer, SharedDocuments, testing::ValuesIn(cases()), test::case_name);

}  // namespace
}  // namespace ttt::launch
