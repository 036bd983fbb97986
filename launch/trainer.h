#pragma once
// One training run on one rank: the step, and what happens between steps.

#include <memory>
#include <optional>
#include <string>

#include "core/base/timer.h"
#include "core/optimizer.h"
#include "dist/communicator.h"
#include "dist/flight_record.h"
#include "dist/tree_reduction.h"
#include "launch/batch_reader.h"
#include "launch/run_output.h"
#include "launch/run_state.h"

namespace ttt::launch {

class Trainer {
 public:
  /// Opens the data, builds the model and puts it at its start: resumed, `train.init_from`, or random.
  /// `resume` as in resume_checkpoint. The configuration has been checked; `stream` says which device computes.
  /// `record` is told what this rank is busy with. Collective.
  Trainer(const config::RunConfig& config, const std::string& resume, Stream stream,
          dist::Communicator& communicator, dist::FlightRecord& record);

  /// Trains to train.steps. kOk, or kStoppedEarly with a checkpoint after a stop signal. Collective.
  ExitCode run();

  [[nodiscard]] const RunState& state() const { return state_; }

 private:
  struct StepResult {
    double loss = 0;
    double grad_norm = 0;
    bool stop = false;  // some rank was asked to stop
    double data_seconds = 0, communication_seconds = 0, seconds = 0;
  };

  StepResult step();
  /// Forward and backward of the shard's sequences; writes each row's masked mean to `row_losses`.
  void run_shard(std::int64_t shard, std::span<double> row_losses, double& data_seconds);
  void after_step(const StepResult& result);
  void evaluate();
  void checkpoint();
  [[nodiscard]] Context context(double inner_multiplier);

  config::RunConfig config_;
  dist::Communicator& communicator_;
  dist::FlightRecord& record_;
  Stream stream_;
  BatchReader train_reader_;
  std::optional<BatchReader> validation_reader_;
  std::string tokenizer_;
  std::unique_ptr<LanguageModel> model_;
  Optimizer optimizer_;
  dist::TreeAccumulator accumulator_;
  Tensor gradients_;
  RunState state_;
  std::int64_t last_saved_step_ = -1;
  std::unique_ptr<RunOutput> output_;  // rank 0
};

/// The element type and GEMM precision of a preset.
DType dtype_of(config::PrecisionPreset precision);
kernels::Precision precision_of(config::PrecisionPreset precision);

}  // namespace ttt::launch
