#pragma once
// One training run on one rank: the step, and what happens between steps.

#include <memory>
#include <optional>
#include <string>

#include "core/base/timer.h"
#include "core/optimizer.h"
#include "dist/gradient_sum.h"
#include "dist/process_grid.h"
#include "dist/sequence_exchange.h"
#include "launch/batch_reader.h"
#include "launch/run_output.h"
#include "launch/run_state.h"

namespace ttt::launch {

class Trainer {
 public:
  /// Opens the data, builds the model and puts it at its start: resumed, `train.init_from`, or random.
  /// `resume` as in resume_checkpoint. The configuration has been checked; `stream` says which device computes.
  /// Collective.
  Trainer(const config::RunConfig& config, const std::string& resume, Stream stream,
          dist::Communicator& communicator);

  /// Trains to train.steps. kOk, or kStoppedEarly with a checkpoint after a stop signal. Collective.
  ExitCode run();

  [[nodiscard]] const RunState& state() const { return state_; }

 private:
  struct StepResult {
    double loss = 0;
    double grad_norm = 0;
    bool stop = false;  // some rank was asked to stop
    double data_seconds = 0, seconds = 0;
    dist::GradientSum::Seconds communication;
  };

  StepResult step();
  /// Forward and backward of the shard's sequences; writes this segment's part of each row's masked mean
  /// to `row_losses`.
  void run_shard(std::int64_t shard, bool is_last, std::span<double> row_losses,
                 double& data_seconds);
  void after_step(const StepResult& result);
  void evaluate();
  void checkpoint();
  [[nodiscard]] Context context(double inner_multiplier);

  config::RunConfig config_;
  dist::ProcessGrid grid_;
  std::unique_ptr<SequenceExchange> sequence_;  // null: sequences are whole
  Stream stream_;
  BatchReader train_reader_;
  std::optional<BatchReader> validation_reader_;
  std::string tokenizer_;
  std::unique_ptr<LanguageModel> model_;
  std::unique_ptr<dist::GradientSum> gradient_sum_;
  Optimizer optimizer_;
  RunState state_;
  std::int64_t last_saved_step_ = -1;
  std::unique_ptr<RunOutput> output_;  // rank 0
};

/// The element type and GEMM precision of a preset.
DType dtype_of(config::PrecisionPreset precision);
kernels::Precision precision_of(config::PrecisionPreset precision);

}  // namespace ttt::launch
