// The bytes that `ttt plan` states against the counters of steps on these ranks: every exchange, with and without ZeRO-1.

#include <gtest/gtest.h>

#include <algorithm>

#include "configs/run_config.h"
#include "dist/gradient_sum.h"
#include "dist/process_grid.h"
#include "dist/sequence_exchange.h"
#include "launch/machine.h"
#include "launch/step_model.h"
#include "launch/trainer.h"
#include "tests/support/mpi_world.h"

namespace ttt::launch {
namespace {

struct Case {
  std::string name;
  std::vector<std::string> fields;
};
void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

std::vector<Case> cases() {
  const std::string heads = "parallel.sequence_exchange=HEAD_EXCHANGE";
  const std::string split = fmt::format("parallel.sequence_ranks={}", test::world().size());
  const std::string pairs = "parallel.sequence_ranks=2";
  const std::string recompute = "train.recompute_blocks=true";
  return {
      {"DataRanks", {}},
      {"DataRanksWithoutZero", {"parallel.zero=ZERO_NONE"}},
      {"DataRanksWithoutOverlap", {"parallel.overlap=false"}},
      {"Linear", {split}},
      {"LinearOnAGrid", {pairs, "parallel.zero=ZERO_NONE"}},
      {"LinearRecomputed", {split, recompute}},
      {"LinearPreConvOnly", {split, "model.share_qk=false"}},
      {"LinearManyRows",
       {split, "parallel.virtual_shards=1", "train.batch_size=32", "train.micro_batch_size=32"}},
      {"LinearDocuments",
       {split, "parallel.virtual_shards=2", "train.micro_batch_size=2", "data.reset_at_bos=true"}},
      {"Mlp", {split, "model.mixer=TTT_MLP"}},
      {"LinearAttention", {split, "model.mixer=LINEAR_ATTENTION"}},
      {"Heads", {split, heads}},
      {"HeadsRecomputed", {split, heads, recompute}},
      {"HeadsOfMlp", {split, heads, "model.mixer=TTT_MLP", "model.share_qk=false"}},
      {"Attention", {split, "model.mixer=ATTENTION"}},
      {"GroupedQueries",
       {split, "model.mixer=ATTENTION", "model.share_qk=false", "model.num_heads=8",
        "model.attention.num_kv_heads=4"}}};
}

config::RunConfig config_of(const Case& one) {
  std::vector<std::string> fields{"model.hidden_size=128", "model.num_heads=4",
                                  "train.batch_size=4", "train.micro_batch_size=1",
                                  "parallel.virtual_shards=4"};
  fields.insert(fields.end(), one.fields.begin(), one.fields.end());
  return config::load_run_config(std::string(TTT_SOURCE_DIR) + "/configs/tiny.textproto", fields,
                                 test::world().size());
}

struct Bytes {
  double gradients, sequence;
};

// Of the rank that sends most. The order of Trainer::queue_step.
Bytes measure_step(const config::RunConfig& config) {
  const dist::ProcessGrid grid(test::world(), config.parallel().sequence_ranks());
  const auto sequence = dist::make_sequence_exchange(sequence_split(config), grid.sequence());
  const std::int64_t length = config.data().context_length();
  LanguageModel model(config.model(), length);
  model.parameters().allocate(DType::kF32);
  model.parameters().initialize(1);
  dist::GradientSumOptions options;
  options.shard_optimizer = has_zero(config);
  options.overlap = config.parallel().overlap();
  options.make_stream = [] { return Stream(); };
  dist::GradientSum sum(model.buckets(config.parallel().bucket_elements()), DType::kF32, options,
                        {&grid.data(), &grid.sequence()});
  Stream stream;
  Context context{stream};
  context.sequence = sequence.get();
  context.observer = &sum;
  // Documents as long as a window are run one by one.
  const Shape rows{config.data().reset_at_bos() ? 1 : config.train().micro_batch_size(),
                   sequence ? sequence->end() - sequence->begin() : length};
  const Tensor ids = Tensor::zeros(rows, DType::kI64);
  const Tensor weight = Tensor::zeros(rows, DType::kF64);
  const Tensor nll(rows, DType::kF64);
  const std::int64_t shards = config.parallel().virtual_shards() / grid.data().size();
  const std::int64_t micro_batches =
      config.train().batch_size() / grid.data().size() / rows[0] / shards;
  double in_forward_and_backward = 0;
  for (std::int64_t shard = 0; shard < shards; ++shard) {
    model.parameters().bind_gradients(sum.slot(stream));
    for (std::int64_t i = 0; i < micro_batches; ++i) {
      // A sum that overlaps has communicators of its own; else it has not begun.
      const std::int64_t before = grid.sequence().traffic().total().bytes_sent;
      if (shard == shards - 1 && i == micro_batches - 1) sum.expect_final();
      model.forward_backward({ids, ids, weight}, nll, config.train().recompute_blocks(), context);
      in_forward_and_backward +=
          static_cast<double>(grid.sequence().traffic().total().bytes_sent - before);
    }
    if (shard < shards - 1) sum.push(stream);
  }
  sum.finish(stream);
  sum.sum_of_squares(stream);
  sum.gather_parameters(model.parameters().values(), stream);
  sum.wait_for_parameters(stream);
  const Tensor sent = Tensor::zeros({2, test::world().size()}, DType::kF64);
  const auto all = static_cast<double>(sum.bytes_sent());
  sent.data<double>()[test::world().rank()] = all - in_forward_and_backward;
  sent.data<double>()[test::world().size() + test::world().rank()] = in_forward_and_backward;
  test::world().all_reduce_sum(sent, stream);
  return {*std::ranges::max_element(sent.view().slice(0, 1).span<double>()),
          *std::ranges::max_element(sent.view().slice(1, 2).span<double>())};
}

class TrafficPlan : public testing::TestWithParam<Case> {};

TEST_P(TrafficPlan, IsWhatAStepSends) {
  const config::RunConfig config = config_of(GetParam());
  const config::MachineConfig machine =
      load_machine(std::string(TTT_SOURCE_DIR) + "/launch/machines/cpu_2core.textproto");
  const int world = test::world().size();
  const StepPrediction planned =
      predict_step(config, world, trace_step(config, world, {}), machine);
  const Bytes measured = measure_step(config);
  EXPECT_NEAR(planned.gradient_traffic.bytes(), measured.gradients, 0.01 * measured.gradients);
  EXPECT_NEAR(planned.sequence_traffic.bytes(), measured.sequence, 0.01 * measured.sequence);
  EXPECT_EQ(measured.sequence > 0, config.parallel().sequence_ranks() > 1);
}

INSTANTIATE_TEST_SUITE_P(Steps, TrafficPlan, testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace ttt::launch
