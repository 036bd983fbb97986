// The memory and the work that a plan states, against steps of the program.

#include <gtest/gtest.h>

#include "configs/run_config.h"
#include "core/optimizer.h"
#include "dist/tree_reduction.h"
#include "kernels/non_finite.h"
#include "kernels/threads.h"
#include "launch/step_trace.h"
#include "launch/trainer.h"

namespace ttt::launch {
namespace {

config::RunConfig config_of(std::vector<std::string> overrides) {
  return config::load_run_config(std::string(TTT_SOURCE_DIR) + "/configs/tiny.textproto", overrides,
                                 1);
}

struct Measured {
  std::int64_t peak, held;
};

// A real step as Trainer::step has it, on the CPU, without files.
Measured measure_step(const config::RunConfig& config) {
  memory::release_free_blocks();
  const std::int64_t before = memory::live_bytes();
  memory::reset_peak();
  const DType dtype = dtype_of(config.train().precision());
  Stream stream;
  Context context{stream, precision_of(config.train().precision())};
  LanguageModel model(config.model(), config.data().context_length());
  model.parameters().allocate(dtype);
  model.parameters().initialize(1);
  Optimizer optimizer(config.optimizer(), config.train().steps(), model.parameters().num_elements(),
                      dtype);
  dist::TreeAccumulator accumulator({model.parameters().num_elements()}, dtype);
  for (std::int64_t shard = 0; shard < config.parallel().virtual_shards(); ++shard) {
    model.parameters().bind_gradients(accumulator.slot(stream));
    const Shape rows{config.train().micro_batch_size(), config.data().context_length()};
    const Tensor ids = Tensor::zeros(rows, DType::kI64);
    const Tensor targets = Tensor::zeros(rows, DType::kI64);
    const Tensor mask = Tensor::zeros(rows, DType::kF64);
    const Tensor weight = Tensor::zeros(rows, DType::kF64);
    const Tensor nll(rows, DType::kF64);
    fill(weight, 1e-3);
    const bool has_documents = config.data().reset_at_bos();  // each as long as a window
    const std::int64_t together = has_documents ? 1 : rows[0];
    for (std::int64_t row = 0; row < rows[0]; row += together) {
      const SequenceRange run{row, row + together, 0, rows[1]};
      model.forward_backward({run.of(ids), run.of(targets), run.of(weight)}, run.of(nll),
                             config.train().recompute_blocks(), context);
    }
    if (shard + 1 < config.parallel().virtual_shards()) accumulator.push(stream);
  }
  const TensorView gradients = accumulator.merge({0, model.parameters().num_elements()}, stream);
  const std::int64_t blocks =
      (gradients.numel() + kernels::kNonFiniteBlock - 1) / kernels::kNonFiniteBlock;
  const Tensor places({blocks}, DType::kF64);
  const Tensor first_place({1}, DType::kF64);
  kernels::find_non_finite(gradients, 0, places, stream);
  kernels::smallest(places, first_place, stream);
  optimizer.update(model.parameters().values(), {}, gradients, 0, stream);
  return {memory::peak_bytes() - before, memory::peak_held_bytes() - before};
}

struct Case {
  std::string name;
  std::vector<std::string> fields;
  // Left out of the plan: tables, partial sums and a thread's tiles, which do not grow with the sequence. Those of
  // attention and of the inner MLP are some 200 KB, of 5 to 7 MB here.
  double left_out = 0.01;
};

class MemoryPlanOfAStep : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override { kernels::set_num_threads(1); }
  void TearDown() override { kernels::set_num_threads(threads_); }

 private:
  int threads_ = kernels::num_threads();
};

TEST_P(MemoryPlanOfAStep, EqualsTheStepsOwn) {
  const config::RunConfig config = config_of(GetParam().fields);
  const MemoryPlan plan = trace_step(config, 1, {}).memory;
  const Measured measured = measure_step(config);
  RecordProperty("peak_ratio", fmt::format("{:.4f}", static_cast<double>(plan.peak) /
                                                         static_cast<double>(measured.peak)));
  RecordProperty("held_ratio", fmt::format("{:.4f}", static_cast<double>(plan.held) /
                                                         static_cast<double>(measured.held)));
  EXPECT_NEAR(static_cast<double>(plan.peak) / static_cast<double>(measured.peak), 1,
              GetParam().left_out);
  EXPECT_NEAR(static_cast<double>(plan.held) / static_cast<double>(measured.held), 1,
              GetParam().left_out + 0.02);
}

INSTANTIATE_TEST_SUITE_P(
    Steps, MemoryPlanOfAStep,
    testing::Values(
        Case{"Tiny", {}},
        Case{"LongAndRecomputed", {"data.context_length=1031", "train.recompute_blocks=true"}},
        Case{"Long", {"data.context_length=1031"}},
        Case{"MicroBatchOfTwo", {"train.micro_batch_size=2", "parallel.virtual_shards=4"}},
        Case{"Documents",
             {"data.reset_at_bos=true", "train.micro_batch_size=2", "parallel.virtual_shards=4"}},
        Case{"Mlp", {"model.mixer=TTT_MLP", "model.num_heads=1"}, 0.07},
        Case{"Attention",
             {"model.mixer=ATTENTION", "model.share_qk=false", "model.use_gate=false",
              "model.pre_conv=false"},
             0.05},
        Case{"GroupedQueries",
             {"model.mixer=ATTENTION", "model.share_qk=false", "model.attention.num_kv_heads=1"},
             0.05},
        Case{"LinearAttention", {"model.mixer=LINEAR_ATTENTION"}},
        Case{"BFloat16", {"train.precision=BF16"}}, Case{"Float64", {"train.precision=FP64"}},
        Case{"LargeVocabulary", {"model.vocab_size=20000", "train.precision=BF16"}}),
    [](const auto& test) { return test.param.name; });

// The norm's pass is over the rank's part alone, by ZeRO-1.
TEST(StepTrace, TheUpdateLooksThroughTheWholeGradientForWhatIsNotFinite) {
  const StepTrace trace = trace_step(config_of({}), 2, {});
  const auto bytes_of = [&](std::string_view op) {
    double bytes = 0;
    for (const auto& [call, count] : trace.update) {
      if (call.op == op) bytes += static_cast<double>(count) * call.bytes;
    }
    return bytes;
  };
  const auto all = static_cast<double>(trace.num_elements * size_of(DType::kF32));
  EXPECT_NEAR(bytes_of("find_non_finite") / all, 1, 0.01);
  EXPECT_GT(bytes_of("smallest"), 0);
  EXPECT_NEAR(bytes_of("block_sums_of_squares") / all, 0.5, 0.01);
}

TEST(StepTrace, AStackOfProductsIsOneOpWithTheWorkOfAll) {
  const kernels::AddressSpace addresses;
  kernels::PlanningTrace trace;
  Stream stream = kernels::make_planning_stream({Device::kCuda}, trace);
  const Tensor x({7, 5}, DType::kBF16);
  const Tensor w({3, 4, 5}, DType::kBF16);
  const Tensor y({3, 7, 4}, DType::kBF16);
  const auto multiply = [&](TensorView weights, TensorView out) {
    kernels::linear_forward(x, weights, {}, out, kernels::Precision::kBF16, stream);
  };
  multiply(w, y);
  for (std::int64_t s = 0; s < 3; ++s) multiply(w.view().at(s), y.view().at(s));
  ASSERT_EQ(trace.calls.size(), 4U);
  EXPECT_EQ(trace.calls[0].flops, 3 * trace.calls[1].flops);
  EXPECT_EQ(trace.calls[0].bytes, 3 * trace.calls[1].bytes);
}

TEST(StepTrace, TheCpuRoundsTheWeightsOfAStackOneByOne) {
  const kernels::AddressSpace addresses;
  kernels::PlanningTrace trace;
  Stream stream = kernels::make_planning_stream({Device::kCpu}, trace);
  const Tensor x({7, 64}, DType::kF32);
  const Tensor w({3, 48, 64}, DType::kF32);
  const Tensor y({3, 7, 48}, DType::kF32);
  const auto needed = [&](TensorView weights, TensorView out) {
    memory::reset_peak();
    kernels::linear_forward(x, weights, {}, out, kernels::Precision::kBF16, stream);
    return memory::peak_bytes() - memory::live_bytes();
  };
  EXPECT_GT(needed(w, y), 0);
  EXPECT_EQ(needed(w, y), needed(w.view().at(0), y.view().at(0)));
}

// A device's decode step is bound by the ops that the host queues: docs/architecture.md, decision 20.
TEST(StepTrace, ADecodeStepQueuesTheSameOpsForOneSequenceAndForMany) {
  const auto calls = [](std::int64_t batch) {
    const config::RunConfig config = config_of({});
    const kernels::AddressSpace addresses;
    kernels::PlanningTrace trace;
    Stream stream = kernels::make_planning_stream({Device::kCuda}, trace);
    Context context{stream, kernels::Precision::kBF16};
    LanguageModel model(config.model(), config.data().context_length());
    model.parameters().allocate(DType::kF32);
    const auto state = model.make_decode_state(batch, context);
    const Tensor ids({batch, 1}, DType::kI64);
    trace.calls.clear();
    static_cast<void>(model.extend(ids, *state, true, context));
    const auto products = std::ranges::count_if(trace.calls, [](const kernels::OpCall& call) {
      return std::string_view(call.op) == "linear_forward";
    });
    // Of a block: the mixer's projections, together, its inner rate and its output; of SwiGLU two. And the head.
    EXPECT_EQ(products, 5 * config.model().num_layers() + 1);
    return trace.calls.size();
  };
  EXPECT_GT(calls(1), 0U);
  EXPECT_EQ(calls(1), calls(7));
}

TEST(MemoryPlan, OnCudaBFloat16WeightsLieBesideTheOthers) {
  const auto trace = [](const std::string& precision, std::int64_t world) {
    return trace_step(config_of({"train.precision=" + precision}), world, {Device::kCuda});
  };
  const StepTrace bf16 = trace("BF16", 1);
  const std::int64_t more = bf16.memory.parameters - trace("FP32", 1).memory.parameters;
  EXPECT_GE(more, bf16.num_elements * size_of(DType::kBF16));
  EXPECT_LE(more, bf16.num_elements * size_of(DType::kBF16) + 4096);  // blocks are rounded up
  const auto rounded_in = [](const std::vector<CountedCall>& calls) {
    return std::ranges::count_if(calls, [](const CountedCall& counted) {
      return std::string_view(counted.call.op) == "copy";
    });
  };
  EXPECT_EQ(rounded_in(trace("BF16", 2).update), rounded_in(bf16.update) + 1);
}

}  // namespace
}  // namespace ttt::launch
