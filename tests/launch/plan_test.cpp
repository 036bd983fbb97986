// `ttt plan`: bytes on the wire, times, the choice of a grid, goodput, and descriptions of machines.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "configs/run_config.h"
#include "dist/tree_collectives.h"
#include "launch/csv_table.h"
#include "launch/goodput.h"
#include "launch/machine.h"
#include "launch/plan_report.h"
#include "tests/launch/temporary_directory.h"

namespace ttt::launch {
namespace {

using dist::RankGroup;
using dist::Volume;
using testing::HasSubstr;

std::string source(const std::string& path) { return std::string(TTT_SOURCE_DIR) + "/" + path; }

config::RunConfig config_of(const std::string& path, const std::vector<std::string>& fields = {}) {
  return config::load_run_config(source("configs/" + path), fields, 0);
}

// Rank `rank` of `size`, whose peers send nothing: it counts what the caller would send.
class CountingCommunicator final : public dist::Communicator {
 public:
  CountingCommunicator(int rank, int size) : rank_(rank), size_(size) {}
  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return size_; }
  [[nodiscard]] int local_rank() const override { return rank_; }
  [[nodiscard]] int local_size() const override { return size_; }
  void exchange(TensorView out, TensorView /*in*/, int peer, Stream& /*stream*/) override {
    sent_.push_back({peer, out.num_bytes()});
  }
  void send(TensorView view, int peer, Stream& /*stream*/) override {
    sent_.push_back({peer, view.num_bytes()});
  }
  void recv(TensorView /*view*/, int /*peer*/, Stream& /*stream*/) override {}
  void broadcast(TensorView /*view*/, int /*root*/, Stream& /*stream*/) override { FAIL(); }
  void all_reduce_sum(TensorView /*inout*/, Stream& /*stream*/) override { FAIL(); }
  void reduce_scatter_sum(TensorView /*in*/, TensorView /*out*/, Stream& /*stream*/) override {
    FAIL();
  }
  void all_gather(TensorView /*in*/, TensorView /*out*/, Stream& /*stream*/) override { FAIL(); }
  void all_to_all(TensorView /*in*/, TensorView /*out*/, Stream& /*stream*/) override { FAIL(); }
  void post(TensorView /*view*/, int /*peer*/, Stream& /*stream*/) override { FAIL(); }
  void barrier() override {}
  [[nodiscard]] std::vector<std::string> gather_strings(const std::string& mine) override {
    return {mine};
  }
  [[nodiscard]] std::unique_ptr<Communicator> split(int /*color*/, int /*key*/) override {
    return nullptr;
  }
  [[nodiscard]] std::unique_ptr<Communicator> duplicate_for_overlap() override { return nullptr; }
  void stop() override {}
  [[noreturn]] void abort(ExitCode code) override { std::exit(static_cast<int>(code)); }

  [[nodiscard]] Volume volume(int ranks_per_node) const {
    Volume sum;
    for (const auto& [peer, bytes] : sent_) {
      const bool is_near = peer / ranks_per_node == rank_ / ranks_per_node;
      (is_near ? sum.intra_bytes : sum.inter_bytes) += static_cast<double>(bytes);
      (is_near ? sum.intra_messages : sum.inter_messages) += 1;
    }
    return sum;
  }

 private:
  int rank_, size_;
  std::vector<std::pair<int, std::int64_t>> sent_;
};

// What the program's own collectives send.
void run_sum(std::int64_t elements, CountingCommunicator& communicator) {
  Stream stream;
  const FlatRange all{0, elements};
  dist::TreeCollectives collectives({&communicator}, 1, {all}, DType::kF32);
  const Tensor flat({elements}, DType::kF32);
  collectives.reduce_scatter(flat, all, stream);
  collectives.all_gather(flat, all, stream);
}

TEST(CommunicationVolume, SumsAreWhatTheProgramSends) {
  constexpr std::int64_t kElements = 100003;
  for (const int ranks : {1, 2, 3, 4, 6, 8, 16, 32}) {
    for (const int ranks_per_node : {1, 4, 32}) {
      const RankGroup group{ranks, 1, ranks_per_node};
      Volume planned = dist::reduce_scatter(4.0 * kElements, group);
      planned += dist::all_gather(4.0 * kElements, group);
      const bool is_halving = std::has_single_bit(static_cast<unsigned>(ranks));
      for (int rank = 0; rank < ranks; ++rank) {
        CountingCommunicator counted(rank, ranks);
        run_sum(kElements, counted);
        const Volume sent = counted.volume(ranks_per_node);
        const double rounding = 4.0 * 2 * ranks;  // less than one element a message
        EXPECT_NEAR(planned.bytes(), sent.bytes(), rounding) << rank << " of " << ranks;
        if (!is_halving)
          continue;  // other groups straddle nodes, where the plan tells the first rank's links
        EXPECT_NEAR(planned.intra_bytes, sent.intra_bytes, rounding) << rank << " of " << ranks;
        EXPECT_EQ(planned.intra_messages, sent.intra_messages);
        EXPECT_EQ(planned.inter_messages, sent.inter_messages);
      }
    }
  }
}

// By hand: 8 ranks, 4 a node, 800 bytes: 400 and 200 go to the node, 100 to the other; then back.
TEST(CommunicationVolume, HalvingByHand) {
  const RankGroup group{8, 1, 4};
  const Volume half = dist::reduce_scatter(800, group);
  EXPECT_EQ(half.intra_bytes, 600);
  EXPECT_EQ(half.inter_bytes, 100);
  EXPECT_EQ(half.inter_messages, 1);
  EXPECT_EQ(dist::all_gather(800, group).bytes(), 700);
  // Two data ranks whose neighbours in the world hold the same sequence: far apart.
  EXPECT_EQ(dist::reduce_scatter(800, RankGroup{2, 4, 4}).inter_bytes, 400);
  EXPECT_EQ(dist::reduce_scatter(800, RankGroup{1, 1, 1}).bytes(), 0);
}

TEST(CommunicationVolume, SequenceRanksByHand) {
  const Volume heads = dist::all_to_all(1600, RankGroup{8, 1, 4});
  EXPECT_EQ(heads.intra_bytes, 3 * 200);
  EXPECT_EQ(heads.inter_bytes, 4 * 200);
  EXPECT_EQ(dist::send_to_neighbour(100, RankGroup{4, 1, 4}).intra_bytes, 100);
  EXPECT_EQ(dist::send_to_neighbour(100, RankGroup{8, 1, 4}).inter_bytes, 100);
  EXPECT_EQ(dist::send_to_neighbour(100, RankGroup{1, 1, 4}).bytes(), 0);
}

// 32 heads of 64: 32 (64 64 + 64) 4 bytes, and 32 (2 64 256 + 256 + 64) 4 for the MLP.
TEST(StepModel, StatesByHand) {
  EXPECT_EQ(state_bytes(config_of("books/ttt_linear_m_1_3b_32k.textproto")), 532480);
  EXPECT_EQ(state_bytes(config_of("books/ttt_mlp_m_1_3b_32k.textproto")), 4235264);
  EXPECT_EQ(state_bytes(config_of("books/llama_1_3b_32k.textproto")), 0);
}

config::MachineConfig flat_machine() {
  config::MachineConfig machine = load_machine(source("launch/machines/h100_node.textproto"));
  machine.set_op_seconds(0);
  return machine;
}

kernels::OpCall call_of(kernels::WorkKind kind, double flops, double bytes) {
  kernels::OpCall call;
  call.op = "add";
  call.kind = kind;
  call.flops = flops;
  call.bytes = bytes;
  return call;
}

TEST(StepModel, AnOpTakesTheLongerOfItsBounds) {
  config::MachineConfig machine = flat_machine();
  machine.set_matmul_flops(1e12);
  machine.set_matmul_fraction(0.5);
  machine.set_memory_bandwidth(1e11);
  machine.set_memory_fraction(0.5);
  using kernels::WorkKind;
  EXPECT_DOUBLE_EQ(seconds_of(call_of(WorkKind::kMatmul, 1e12, 1e9), machine), 2);
  EXPECT_DOUBLE_EQ(seconds_of(call_of(WorkKind::kMatmul, 1e9, 1e11), machine), 2);
  EXPECT_DOUBLE_EQ(seconds_of(call_of(WorkKind::kMemory, 1e12, 5e10), machine), 1);
  config::OpRate& rate = *machine.add_op();
  rate.set_name("add");
  rate.set_bytes_per_second(1e10);
  EXPECT_DOUBLE_EQ(seconds_of(call_of(WorkKind::kMemory, 0, 5e10), machine), 5);
}

// 2048 mini-batches one after the other, however few pairs there are.
TEST(StepModel, TheInnerLoopIsSerial) {
  const config::MachineConfig machine = flat_machine();
  kernels::OpCall call = call_of(kernels::WorkKind::kInnerLoop, 2048 * 16 * 28672.0, 0);
  call.pairs = 1;
  call.serial_steps = 2048;
  EXPECT_NEAR(seconds_of(call, machine), 2048 * 1.02e-6, 1e-12);
  call.flops *= 4096;
  call.pairs *= 4096;
  EXPECT_NEAR(seconds_of(call, machine), call.flops / (989e12 * 0.095), 1e-9);
}

// The ops of a forward pass are those that flops_per_token counts, and backward has twice as many products.
TEST(StepTrace, CountsTheModelsProducts) {
  for (const char* mixer : {"TTT_LINEAR", "TTT_MLP", "ATTENTION", "LINEAR_ATTENTION"}) {
    const config::RunConfig config =
        config_of("tiny.textproto", {std::string("model.mixer=") + mixer,
                                     // whose few products the ops do not count
                                     "model.share_qk=false", "model.pre_conv=false"});
    const StepTrace trace = trace_step(config, 1, {});
    double forward = 0;
    double backward = 0;
    for (const auto& [call, count] : trace.micro_batch) {
      const std::string op = call.op;
      const bool is_head = op == "head_cross_entropy";
      const bool is_forward = op.ends_with("_forward");
      const double flops = static_cast<double>(count) * call.flops;
      forward += is_head ? flops / 3 : is_forward ? flops : 0;
      // Without what is computed a second time: the inner loop's forward; attention's first product of two.
      const double again = op == "attention_backward"                                  ? 4.0 / 5
                           : op == "ttt_backward" || op == "linear_attention_backward" ? 2.0 / 3
                                                                                       : 1;
      backward += is_head ? 2 * flops / 3 : is_forward ? 0 : flops * again;
    }
    const double tokens = static_cast<double>(trace.micro_batch_tokens);
    EXPECT_NEAR(forward / tokens, trace.flops_per_token, 1e-9 * trace.flops_per_token) << mixer;
    EXPECT_NEAR(backward, 2 * forward, 1e-9 * forward) << mixer;
  }
}

TEST(Planner, EveryPresetCanBePlanned) {
  const config::MachineConfig machine = load_machine(source("launch/machines/h200_node.textproto"));
  int count = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(source("configs"))) {
    if (entry.path().extension() != ".textproto") continue;
    ++count;
    config::RunConfig config = config::load_run_config(entry.path(), {}, 0);
    if (config.train().precision() == config::FP32)
      config.mutable_train()->set_precision(config::BF16);
    Planner planner(config, machine);
    const Candidate candidate = planner.evaluate(config, 1);
    EXPECT_GT(candidate.time.step(), 0) << entry.path();
    EXPECT_GT(candidate.memory.peak, 0) << entry.path();
    const double mfu = model_flops_utilization(config, 1, candidate.flops_per_token,
                                               candidate.time.step(), machine);
    EXPECT_LT(mfu, 0.6) << entry.path();  // what its products reach
  }
  EXPECT_GT(count, 100);
}

// 16 sequences of 32k: more than 16 ranks need the sequence split; the model fits with small micro-batches only.
TEST(Planner, ChoosesAGridThatRuns) {
  const config::RunConfig config =
      config_of("books/ttt_linear_m_1_3b_32k.textproto", {"train.precision=BF16"});
  Planner planner(config, load_machine(source("launch/machines/h100_node.textproto")));
  const std::vector<Candidate> candidates = planner.choose(64);
  const Candidate& best = candidates.front();
  ASSERT_TRUE(best.runs()) << best.problem;
  EXPECT_GE(best.config.parallel().sequence_ranks(), 4);
  EXPECT_TRUE(config::find_problems(best.config, 64).empty());
  EXPECT_LE(static_cast<double>(best.memory.needed()), planner.usable_memory());
  int refused = 0;
  for (const Candidate& candidate : candidates) {
    if (candidate.runs()) {
      EXPECT_LE(best.time.step(), candidate.time.step());
    } else {
      ++refused;
    }
  }
  EXPECT_EQ(refused, 2);  // 64 x 1 and 32 x 2: more data ranks than sequences
  EXPECT_THAT(choice_text(candidates), HasSubstr("chosen: "));
}

// What one H100 cannot hold it holds when blocks are recomputed.
TEST(Planner, RecomputesWhereMemoryIsShort) {
  const config::RunConfig config =
      config_of("books/ttt_linear_m_1_3b_32k.textproto", {"train.precision=BF16"});
  Planner planner(config, load_machine(source("launch/machines/h100_node.textproto")));
  const std::vector<Candidate> candidates = planner.choose(1);
  ASSERT_TRUE(candidates.front().runs());
  EXPECT_TRUE(candidates.front().config.train().recompute_blocks());
  EXPECT_THAT(candidates.back().problem, HasSubstr("GiB of the"));
}

TEST(Planner, ZeroDividesTheMoments) {
  const auto evaluated = [&](const char* zero) {
    const config::RunConfig config = config_of("small.textproto", {zero});
    return Planner(config, load_machine(source("launch/machines/cpu_2core.textproto")))
        .evaluate(config, 8);
  };
  const Candidate whole = evaluated("parallel.zero=ZERO_NONE");
  const Candidate part = evaluated("parallel.zero=ZERO_OPTIMIZER");
  EXPECT_NEAR(static_cast<double>(whole.memory.moments) / static_cast<double>(part.memory.moments),
              8, 1);  // size classes
  EXPECT_NEAR(whole.time.gradient_traffic.bytes(), part.time.gradient_traffic.bytes(), 1);
}

TEST(Planner, OverlapHidesAllButTheLastLayer) {
  const auto evaluated = [&](const char* overlap) {
    const config::RunConfig config =
        config_of("pile/ttt_linear_m_125m_2k.textproto", {"train.precision=BF16", overlap});
    return Planner(config, load_machine(source("launch/machines/h100_node.textproto")))
        .evaluate(config, 8);
  };
  const Candidate exposed = evaluated("parallel.overlap=false");
  const Candidate hidden = evaluated("parallel.overlap=true");
  EXPECT_DOUBLE_EQ(exposed.time.exposed_gradients, exposed.time.gradients);
  EXPECT_NEAR(hidden.time.exposed_gradients, hidden.time.gradients / 12,
              1e-9 * hidden.time.gradients);
}

TEST(Planner, WritesTheSweep) {
  const test::TemporaryDirectory directory;
  const config::RunConfig config = config_of("small.textproto");
  Planner planner(config, load_machine(source("launch/machines/cpu_2core.textproto")));
  std::vector<Candidate> best;
  for (const std::int64_t world : {1, 2, 4}) best.push_back(planner.choose(world).front());
  directory.write("scaling.csv", sweep_csv(best, planner.machine()));
  const CsvTable table = read_csv(directory.file("scaling.csv"));
  EXPECT_THAT(table.column("ranks"), testing::ElementsAre(1, 2, 4));
  EXPECT_THAT(table.column("efficiency")[0], 1);
  EXPECT_THAT(sweep_svg(best, planner.machine()), HasSubstr("efficiency"));
}

TEST(Planner, RefusesDoubleOnCuda) {
  const config::RunConfig config = config_of("tiny.textproto", {"train.precision=FP64"});
  EXPECT_THROW(Planner(config, load_machine(source("launch/machines/h100_node.textproto"))), Error);
}

// Every 950 s a checkpoint that stops the run for 50 s and is there after 200, failures every 10,000 s, restarts of 300 s:
// (300 + 200 + 1000 / 2) / 10,000 is lost, a twentieth of the rest stands still; sqrt(2 50 10,000) = 1000 s.
TEST(Goodput, ByHand) {
  const Goodput result = goodput({50, 200, 950, 1e4, 300});
  EXPECT_DOUBLE_EQ(result.lost_and_restarting, 0.1);
  EXPECT_DOUBLE_EQ(result.stalled, 0.045);
  EXPECT_DOUBLE_EQ(result.training, 0.855);
  EXPECT_DOUBLE_EQ(result.best_interval_seconds, 1000);
  EXPECT_DOUBLE_EQ(goodput({1, 200, 950, 1e4, 300}).best_interval_seconds, 200);  // one at a time
  EXPECT_GT(result.at_best_interval, result.training - 1e-3);
  for (const double factor : {0.5, 0.8, 1.25, 2.0}) {  // near its best, where it is flat
    const double other = factor * result.best_interval_seconds;
    EXPECT_LT(goodput({50, 200, other, 1e4, 300}).training, result.at_best_interval + 0.002);
  }
}

std::string message_of(const std::string& text) {
  const test::TemporaryDirectory directory;
  directory.write("machine.textproto", text);
  try {
    (void)load_machine(directory.file("machine.textproto"));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    return error.what();
  }
  return {};
}

TEST(Machine, BadDescriptionsAreRefusedWithEveryProblem) {
  EXPECT_THAT(message_of("memory_byte: 3"), HasSubstr("memory_byte"));
  const std::string problems = message_of("memory_bytes: -3 matmul_fraction: 1.5");
  for (const char* field : {"memory_bytes = -3", "matmul_flops = 0", "matmul_fraction = 1.5",
                            "memory_bandwidth = 0", "bytes_per_second = 0"}) {
    EXPECT_THAT(problems, HasSubstr(field));
  }
  for (const char* name : {"h100_node", "h200_node", "a100_node", "cpu_2core"}) {
    EXPECT_EQ(load_machine(source(std::string("launch/machines/") + name + ".textproto")).name(),
              name);
  }
}

}  // namespace
}  // namespace ttt::launch
