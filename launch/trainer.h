#pragma once
// One training run on one rank: the step, and what happens between steps.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/timer.h"
#include "core/base/work_timer.h"
#include "core/optimizer.h"
#include "dist/flight_record.h"
#include "dist/gradient_sum.h"
#include "dist/process_grid.h"
#include "dist/sequence_exchange.h"
#include "launch/batch_prefetcher.h"
#include "launch/batch_reader.h"
#include "launch/checkpoint_saver.h"
#include "launch/guard.h"
#include "launch/run_output.h"
#include "launch/run_state.h"
#include "launch/straggler.h"

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
  [[nodiscard]] const LanguageModel& model() const { return *model_; }

 private:
  /// What every rank tells the others in a step.
  enum RankReport : std::int8_t {
    kStops,      // 1: was asked to stop
    kNonFinite,  // place of the first element of its own gradient that is not finite, else infinity
    kComputeSeconds,  // of the last finished step, without waiting; 0: not measured
    kRankReportSize
  };

  /// A step whose work is queued.
  struct QueuedStep {
    RunOutput::Step row;  // what the host knows before the work is done
    kernels::UpdateLimits limits;
    // F64: results_, then the sum of the gradient's squares and whether the update was made.
    Tensor results;
    Stream::Event is_done;
    WorkTimer work;               // the rank's own, without waits for gradients and parameters
    double exchange_seconds = 0;  // of it: the host waited for other parts of the sequences
    double queued_at = 0;
  };

  /// The constructor's last part.
  void start(const std::string& resume);
  /// resume_checkpoint, with the parameters that other ranks have read.
  bool resume(const std::string& which);
  /// train.init_from, at least where this rank's optimizer updates.
  void take_weights();
  /// From the ranks that have them: after a rank has read its own.
  void gather_parameters();
  /// Everything that follows from `state_`, which was resumed or is the start.
  void take_up();
  /// Buffers, and the thread that reads the micro-batches from the run's place on.
  void start_reading();
  /// The row losses of results_.
  [[nodiscard]] TensorView losses() const;
  void make_saver();
  ExitCode run_steps();
  /// Everything of the next step, without waiting for any of it.
  QueuedStep queue_step();
  /// Its first part: forward and backward of this rank's virtual shards.
  void queue_shards(QueuedStep& step);
  /// The rest: what the ranks tell each other, the sum of the gradients, AdamW, and the results on their way to the host.
  void queue_update(QueuedStep& step);
  /// Forward and backward of the shard's sequences; `row_losses` [B] F64 gets this segment's part of each one's masked
  /// mean.
  void run_shard(std::int64_t shard, bool is_last, TensorView row_losses, double& data_seconds);
  struct Outcome {
    bool is_stopping = false;  // some rank was asked to stop
    bool rolls_back = false;   // for a spike; nothing was written of the step
  };
  /// Waits for the step and writes its row. Throws kNumerical.
  Outcome finish_step(QueuedStep& step);
  /// Logs why the step made no update; throws kNumerical when the run cannot go on.
  void judge_skipped(const QueuedStep& step, Guard::Verdict verdict);
  /// "rank 1, gradient of NAME": what was not finite, of the ranks' own numbers.
  [[nodiscard]] std::string find_non_finite(const QueuedStep& step) const;
  void report_stragglers(const QueuedStep& step);
  /// Goes on from the last checkpoint with the data after step `from`.
  void roll_back(std::int64_t from);
  void compare_replicas();
  [[nodiscard]] bool is_due(std::int64_t interval) const;
  /// False when the run is asked to stop before all is evaluated.
  bool evaluate();
  /// The run was stopped in the evaluation that is due at its step. Collective.
  bool lacks_evaluation();
  void checkpoint();
  /// Waits for the checkpoint that is being written.
  void finish_checkpoint();
  [[nodiscard]] Context context(double inner_multiplier);

  config::RunConfig config_;
  dist::ProcessGrid grid_;
  std::unique_ptr<SequenceExchange> sequence_;  // null: sequences are whole
  dist::FlightRecord& record_;
  Stream stream_;
  BatchReader train_reader_;
  std::vector<HeldOut> held_out_;
  std::vector<BatchReader> held_out_readers_;
  std::optional<BatchPrefetcher> prefetcher_;
  BatchReader::Buffers batch_;  // where the device computes
  std::string tokenizer_;
  std::unique_ptr<LanguageModel> model_;
  std::unique_ptr<dist::GradientSum> gradient_sum_;
  Optimizer optimizer_;
  Tensor nll_;  // [micro-batch, T] F64
  // F64: B row losses for every segment of the sequences, then the RankReport of every rank.
  Tensor results_;
  bool rounds_gathered_ = false;  // ZeRO-1 with a bf16 copy of the weights
  RunState state_;
  Guard guard_;
  StragglerReport stragglers_;
  double compute_seconds_ = 0;  // of the last finished step
  std::int64_t last_saved_step_ = -1;
  Timer clock_;
  double finished_at_ = 0;             // the step before
  std::unique_ptr<RunOutput> output_;  // rank 0
  std::unique_ptr<CheckpointSaver> saver_;
};

/// The element type and GEMM precision of a preset.
DType dtype_of(config::PrecisionPreset precision);
kernels::Precision precision_of(config::PrecisionPreset precision);
/// Whether a run keeps its weights in BF16 too, for products, beside the fp32 ones that AdamW changes.
bool keeps_rounded(const config::RunConfig& config, Device device);

}  // namespace ttt::launch
