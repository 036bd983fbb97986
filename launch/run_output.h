#pragma once
// What a run shows and leaves for people: progress line, metrics.jsonl, TensorBoard, report. Rank 0.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "configs/run.pb.h"
#include "core/base/timer.h"
#include "launch/metrics_log.h"
#include "launch/progress_line.h"
#include "launch/tensorboard.h"

namespace ttt::launch {

class RunOutput {
 public:
  /// Appends after `resume_step` updates. `train_flops_per_token`: forward and backward.
  RunOutput(const config::RunConfig& config, std::int64_t resume_step, int num_ranks,
            std::int64_t num_parameters, double train_flops_per_token);

  using BySource = std::vector<std::pair<std::string, double>>;

  struct Step {
    std::int64_t step = 0;  // updates done
    std::int64_t tokens = 0;
    double loss = 0, learning_rate = 0, grad_norm = 0;
    double seconds = 0, data_seconds = 0;
    double communication_seconds = 0;
    double exposed_seconds = 0;  // of communication: the computing thread waited
    std::vector<std::pair<std::string, std::int64_t>> source_tokens;  // so far, of a mixture
    const char* skipped = nullptr;  // why there was no update; null: there was one
  };
  void train_step(const Step& step);
  /// `sources`: the losses on each source's own validation tokens.
  void validation(std::int64_t step, double loss, const BySource& sources);
  /// Whether the metrics have a validation loss of this step.
  [[nodiscard]] bool has_validation(std::int64_t step) const;
  /// The run goes on from step `to`; rows of later steps were dropped when this was made.
  void rolled_back(std::int64_t to, std::int64_t from);
  /// A checkpoint is about to be committed: every row so far must survive with it.
  void before_checkpoint();
  /// Ends the progress line and writes report.html.
  void finish();

 private:
  config::RunConfig config_;
  int num_ranks_;
  double train_flops_per_token_;
  MetricsLog metrics_;
  TensorBoardWriter tensorboard_;
  ProgressLine progress_;
  Timer wall_;
  double earlier_seconds_ = 0;  // of the parts of the run before this one
  Step interval_;               // sums since the last progress line
};

}  // namespace ttt::launch
