// The trainer against the loop that docs/architecture.md describes, without a reader's thread, results read late or
// rounded weights: bit for bit, on the CPU and, with TTT_TEST_CUDA, on a device or its emulator.

#include "launch/trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "core/base/fault_point.h"
#include "core/base/memory.h"
#include "core/token_range.h"
#include "data/checkpoint/checkpoint.h"
#include "data/checkpoint/manifest.h"
#include "data/files.h"
#include "kernels/copy.h"
#include "kernels/row_losses.h"
#include "launch/metrics_log.h"
#include "launch/replica_check.h"
#include "tests/launch/token_run.h"
#include "tests/support/kernel_check.h"
#include "tests/support/tensors.h"

namespace ttt::launch {
namespace {

// Steps from 0; -1: none.
struct Disturbance {
  std::int64_t not_finite = -1;   // its gradient
  std::int64_t passed_over = -1;  // its data, for that of the step after, and so on
};

// tests/faults/fault_points.cpp
class ArmedFault {
 public:
  explicit ArmedFault(const char* fault) { setenv("FAULT", fault, 1); }
  ArmedFault(const ArmedFault&) = delete;
  ArmedFault& operator=(const ArmedFault&) = delete;
  ~ArmedFault() {
    unsetenv("FAULT");
    fault_point("disarmed");  // what was disturbed is forgotten
  }
};

struct Curve {
  std::vector<std::int64_t> steps;
  std::vector<double> losses, norms;
  std::vector<std::pair<std::int64_t, std::string>> skipped;
};

class TrainerTest : public testing::TestWithParam<const char*> {
 protected:
  TrainerTest() : communicator_(dist::make_single_communicator()) {
    run_.set(std::string("model.mixer=") + GetParam());
  }

  Trainer make_trainer() {
    return {run_.config(), "auto", ttt::test::stream(), *communicator_, record_};
  }

  static std::vector<double> values_of(const LanguageModel& model) {
    return ttt::test::values_of(model.parameters().values());
  }

  // As simple as it can be; parameters end up in `values`.
  Curve train_plainly(Tensor& values, const Disturbance& disturbance = {}) const {
    const config::RunConfig& config = run_.config();
    Stream stream = ttt::test::stream();
    LanguageModel model(config.model(), config.data().context_length());
    ParameterStore& store = model.parameters();
    store.allocate(DType::kF32);
    store.initialize(config.seed());
    Optimizer optimizer(config.optimizer(), config.train().steps(), store.num_elements(),
                        DType::kF32);
    const BatchReader reader(config, data::Split::kTrain);
    const std::int64_t batch = config.train().batch_size();
    const std::int64_t rows = config.train().micro_batch_size();
    Context context{stream, kernels::Precision::kBF16};
    Curve curve;
    for (std::int64_t step = 0; step < config.train().steps(); ++step) {
      std::vector<Tensor> shards;
      double loss = 0;
      for (std::int64_t row = 0; row < batch; row += rows) {
        if (row % (batch / config.parallel().virtual_shards()) == 0) {
          shards.push_back(Tensor::zeros({store.num_elements()}, DType::kF32));
          store.bind_gradients(shards.back());
        }
        const BatchReader::Buffers buffers = reader.make_buffers(rows);
        const bool is_late = disturbance.passed_over >= 0 && step >= disturbance.passed_over;
        reader.read((step + (is_late ? 1 : 0)) * batch + row, batch, buffers);
        const Tensor nll(buffers.ids.shape(), DType::kF64);
        const Tensor losses({rows}, DType::kF64);
        for (std::int64_t r = 0; r < rows; ++r) run_documents(model, buffers, r, nll, context);
        kernels::row_losses(buffers.weight, nll, losses, stream);
        stream.synchronize();
        for (const double one : losses.span<double>()) loss += one;
      }
      EXPECT_EQ(shards.size(), 2U);
      const Tensor gradients = to_dtype(shards[0], DType::kF32);
      for (std::int64_t i = 0; i < gradients.numel(); ++i) {
        gradients.data<float>()[i] += shards[1].data<float>()[i];
      }
      if (step == disturbance.not_finite) gradients.data<float>()[0] = std::nanf("");
      optimizer.update(store.values(), {}, gradients, step, stream);
      stream.synchronize();
      curve.steps.push_back(step + 1);
      curve.losses.push_back(loss);
      curve.norms.push_back(std::sqrt(*optimizer.squares().data<double>()));
    }
    values = to_dtype(store.values(), DType::kF32);
    return curve;
  }

  // One row, as a whole or each document of it by itself.
  void run_documents(const LanguageModel& model, const BatchReader::Buffers& buffers,
                     std::int64_t row, const Tensor& nll, Context& context) const {
    const std::int64_t length = nll.size(1);
    const bool cuts = run_.config().data().reset_at_bos();
    const std::int64_t* const ids = buffers.ids.data<std::int64_t>() + row * length;
    for (std::int64_t begin = 0, end = 0; begin < length; begin = end) {
      end = begin + 1;
      while (end < length && !(cuts && ids[end] == 1)) ++end;
      const auto part = [&](const Tensor& tensor) {
        return sequence_tokens(tensor, row, begin, end).reshape({1, end - begin});
      };
      model.forward_backward({part(buffers.ids), part(buffers.targets), part(buffers.weight)},
                             part(nll), false, context);
    }
  }

  [[nodiscard]] Curve written_curve() const {
    Curve curve;
    for (const MetricsRow& row :
         read_metrics(run_.config().output_directory() + "/metrics.jsonl")) {
      if (row.kind != "train") continue;
      curve.steps.push_back(row.step);
      curve.losses.push_back(row.number("loss"));
      curve.norms.push_back(row.number("grad_norm"));
      for (const auto& [key, value] : row.values) {
        if (key == "skipped") curve.skipped.push_back({row.step, std::get<std::string>(value)});
      }
    }
    return curve;
  }
  [[nodiscard]] std::vector<std::int64_t> saved_steps() const {
    std::vector<std::int64_t> steps;
    for (const auto& location : data::list_checkpoints(run_.config().output_directory())) {
      steps.push_back(location.step);
    }
    std::ranges::sort(steps);
    return steps;
  }

  ttt::test::TokenRun run_;
  dist::FlightRecord record_;
  std::unique_ptr<dist::Communicator> communicator_;
};

// What is the same whatever the mixer.
class TrainerGuardTest : public TrainerTest {};

TEST_P(TrainerTest, StepsAreThoseOfThePlainLoop) {
  Tensor expected;
  const Curve plain = train_plainly(expected);
  Trainer trainer = make_trainer();
  EXPECT_EQ(trainer.run(), ExitCode::kOk);
  EXPECT_EQ(values_of(trainer.model()), ttt::test::values_of(expected));
  const Curve curve = written_curve();
  EXPECT_EQ(curve.steps, plain.steps);
  EXPECT_EQ(curve.losses, plain.losses);
  EXPECT_EQ(curve.norms, plain.norms);
  EXPECT_EQ(saved_steps(), (std::vector<std::int64_t>{2, 4, 5}));
}

TEST_P(TrainerTest, DocumentsCanBeSequencesOfTheirOwn) {
  const Curve whole = [&] {
    Tensor unused;
    return train_plainly(unused);
  }();
  run_.set("data.reset_at_bos=true");
  Tensor expected;
  const Curve plain = train_plainly(expected);
  EXPECT_NE(plain.losses, whole.losses);  // there are documents, and it matters
  Trainer trainer = make_trainer();
  EXPECT_EQ(trainer.run(), ExitCode::kOk);
  EXPECT_EQ(values_of(trainer.model()), ttt::test::values_of(expected));
  EXPECT_EQ(written_curve().losses, plain.losses);
  EXPECT_EQ(written_curve().norms, plain.norms);
}

TEST_P(TrainerTest, ResumedRunsGoOnBitForBit) {
  Tensor expected;
  {
    Trainer whole = make_trainer();
    EXPECT_EQ(whole.run(), ExitCode::kOk);
    expected = to_dtype(whole.model().parameters().values(), DType::kF32);
  }
  const Curve curve = written_curve();
  for (const std::int64_t step : {4, 5}) {
    std::filesystem::remove_all(data::checkpoint_directory(run_.config().output_directory(), step));
  }
  Trainer resumed = make_trainer();
  EXPECT_EQ(resumed.state().step, 2);
  EXPECT_EQ(resumed.run(), ExitCode::kOk);
  EXPECT_EQ(values_of(resumed.model()), ttt::test::values_of(expected));
  EXPECT_EQ(written_curve().losses, curve.losses);
}

// The message with which the run ends, with 81.
std::string numerical_error_of(Trainer& trainer) {
  ExitCode code = ExitCode::kOk;
  std::string error = ttt::test::error_of([&] { trainer.run(); }, &code);
  EXPECT_EQ(code, ExitCode::kNumerical);
  return error;
}

// The host learns of it one step late on a device; nothing is saved or written of it or of what came after.
TEST_P(TrainerTest, AGradientThatIsNotFiniteEndsTheRun) {
  run_.set("optimizer.learning_rate=1e30");
  run_.set("checkpoint.interval_steps=3");
  run_.set("guard.max_consecutive_skips=0");
  Trainer trainer = make_trainer();
  EXPECT_THAT(numerical_error_of(trainer),
              testing::HasSubstr("not finite at step 2: rank 0, gradient of model."));
  EXPECT_EQ(written_curve().steps, (std::vector<std::int64_t>{1}));
  EXPECT_EQ(saved_steps(), std::vector<std::int64_t>{});
}

// What all ranks saved before is committed before the run ends.
TEST_P(TrainerTest, ASaveInFlightOutlivesAGradientThatIsNotFinite) {
  run_.set("optimizer.learning_rate=1e30");
  run_.set("guard.max_consecutive_skips=0");
  run_.set("checkpoint.interval_steps=1");
  Trainer trainer = make_trainer();
  EXPECT_THAT(numerical_error_of(trainer), testing::HasSubstr("not finite"));
  EXPECT_EQ(saved_steps(), std::vector<std::int64_t>{1});
}

TEST_P(TrainerGuardTest, TooManyStepsInARowThatAreNotFiniteEndTheRun) {
  run_.set("optimizer.learning_rate=1e30");
  run_.set("checkpoint.interval_steps=3");
  run_.set("guard.max_consecutive_skips=2");
  Trainer trainer = make_trainer();
  EXPECT_THAT(numerical_error_of(trainer), testing::HasSubstr("not finite at step 4"));
  EXPECT_EQ(written_curve().steps, (std::vector<std::int64_t>{1, 2, 3}));
  EXPECT_EQ(saved_steps(), (std::vector<std::int64_t>{3}));
  for (const double value : values_of(trainer.model())) ASSERT_TRUE(std::isfinite(value));
}

// The other steps are those of a loop without that update, also where the next step was queued before it was known, and
// in a run that is resumed before or after it.
TEST_P(TrainerGuardTest, AStepThatIsNotFiniteIsSkipped) {
  Tensor expected;
  const Curve plain = train_plainly(expected, {.not_finite = 2});
  for (const std::int64_t resumed_at : {0, 4}) {
    const ArmedFault fault("nan@0:after_backward:3");
    for (const std::int64_t step : saved_steps()) {
      if (step <= resumed_at) continue;
      std::filesystem::remove_all(
          data::checkpoint_directory(run_.config().output_directory(), step));
    }
    Trainer trainer = make_trainer();
    EXPECT_EQ(trainer.state().step, resumed_at);
    EXPECT_EQ(trainer.run(), ExitCode::kOk);
    EXPECT_EQ(values_of(trainer.model()), ttt::test::values_of(expected));
    const Curve curve = written_curve();
    EXPECT_EQ(curve.steps, plain.steps);
    EXPECT_EQ(curve.losses, plain.losses);
    EXPECT_EQ(curve.skipped, (decltype(curve.skipped){{3, "not finite"}}));
  }
}

TEST_P(TrainerGuardTest, ACheckpointWithAnImpossibleGuardIsPassedOver) {
  make_trainer().run();
  const std::string& run = run_.config().output_directory();
  std::filesystem::remove_all(data::checkpoint_directory(run, 5));
  const std::string damaged = data::checkpoint_directory(run, 4);
  config::CheckpointManifest manifest = data::read_manifest(damaged);
  EXPECT_EQ(manifest.guard().window_size(), 4);
  manifest.mutable_guard()->mutable_window(1)->set_grad_norm(INFINITY);
  data::write_manifest(damaged, manifest);
  EXPECT_EQ(make_trainer().state().step, 2);
}

TEST_P(TrainerGuardTest, ASpikeIsSkippedOrLeftBehind) {
  run_.set("train.steps=6");
  run_.set("guard.spike_window=2");
  run_.set("guard.spike_deviations=100");  // six times the median and more: only the fault is
  Tensor expected;
  {
    const ArmedFault fault("scale@0:after_backward:5:1e6");
    run_.set("guard.spike_policy=SKIP");
    train_plainly(expected, {.not_finite = 4});
    Trainer trainer = make_trainer();
    EXPECT_EQ(trainer.run(), ExitCode::kOk);
    EXPECT_EQ(values_of(trainer.model()), ttt::test::values_of(expected));
    EXPECT_EQ(written_curve().skipped, (decltype(Curve::skipped){{5, "spike"}}));
  }
  for (const std::int64_t step : saved_steps()) {
    std::filesystem::remove_all(data::checkpoint_directory(run_.config().output_directory(), step));
  }
  run_.set("guard.spike_policy=ROLLBACK");
  const Curve plain = train_plainly(expected, {.passed_over = 4});
  const ArmedFault fault("scale@0:after_backward:5:1e6");
  Trainer trainer = make_trainer();
  EXPECT_EQ(trainer.run(), ExitCode::kOk);
  EXPECT_EQ(values_of(trainer.model()), ttt::test::values_of(expected));
  EXPECT_EQ(written_curve().steps, plain.steps);
  EXPECT_EQ(written_curve().losses, plain.losses);
  EXPECT_EQ(written_curve().skipped, decltype(Curve::skipped){});
  EXPECT_EQ(trainer.state().guard.rollbacks(), 1);
  EXPECT_EQ(trainer.state().guard.passed_over_steps(), 1);
}

// Its name puts the suite among those of the programs for a device.
INSTANTIATE_TEST_SUITE_P(CudaModel, TrainerTest, testing::Values("TTT_LINEAR", "ATTENTION"),
                         [](const auto& test) { return std::string(test.param); });
INSTANTIATE_TEST_SUITE_P(CudaModel, TrainerGuardTest, testing::Values("ATTENTION"),
                         [](const auto& test) { return std::string(test.param); });

// A device's values come to the host in pieces of 2^23 elements.
TEST(CudaModelReplicaDigest, IsThatOfTheBytesWhereverTheyLie) {
  Stream stream = test::stream();
  const Tensor host({3, (std::int64_t{1} << 22) + 5}, DType::kF32);
  for (std::int64_t i = 0; i < host.numel(); ++i) host.data<float>()[i] = static_cast<float>(i);
  const std::string expected = data::xxh3_128_hex(std::as_bytes(host.span<float>()));
  const memory::Scope scope({"a test"}, memory::Place::kDevice);
  const Tensor values(host.shape(), host.dtype());
  kernels::copy(host, values, stream);
  EXPECT_EQ(replica_digest(values, stream), expected);
}

}  // namespace
}  // namespace ttt::launch
