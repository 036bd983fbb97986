#pragma once
// metrics.jsonl: the numbers of a run, one JSON object a line, the source of every plot.
//
// Rows of training have kind "train", of validation "eval", of rollbacks "rollback"; a row of kind "run" holds constants.
// The names that the report and the progress line know:
//   train: loss, learning_rate, grad_norm, tokens (so far), tokens_per_second, wall_seconds (so far),
//          data_seconds (the computing thread waited for batches), tokens_SOURCE (so far, of a mixture),
//          communication_seconds, exposed_communication_seconds (the computing thread waited)
//          and of steps without an update: skipped ("not finite" or "spike")
//   eval:  loss, perplexity, loss_SOURCE
//   rollback: from_step; of the first step after the one rolled back to
//   run:   parameters, num_ranks
// Others are welcome. Non-finite numbers are written as null, which JSON has instead.

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "launch/append_file.h"

namespace ttt::launch {

using MetricsValue = std::variant<std::int64_t, double, std::string>;

struct MetricsRow {
  std::int64_t step = 0;
  std::string kind;
  std::vector<std::pair<std::string, MetricsValue>> values;  // written in this order

  /// The number under `key`; NaN when absent or not a number.
  [[nodiscard]] double number(const std::string& key) const;
};

/// One line, without the line end. Doubles have as many digits as it takes to read back their bits,
/// 17 at most.
std::string format_row(const MetricsRow& row);

/// The rows of a file. A last line cut short by a crash is left out; kMissingInput when there is no
/// file, kCorruptInput with the line number for anything else that is not a row.
std::vector<MetricsRow> read_metrics(const std::string& path);

/// Appends to a file. One writer a file (rank 0).
class MetricsLog {
 public:
  /// Continues after `resume_step` finished steps: rows of later steps, which the run before an
  /// interruption wrote after its last checkpoint, are dropped, so that there is one row a step.
  /// A fresh run has resume_step 0 and keeps rows of step 0 only.
  MetricsLog(const std::string& path, std::int64_t resume_step);

  void write(const MetricsRow& row);
  /// To the disk: called before a checkpoint of the same step is committed, so that a resumed run
  /// has no gap.
  void sync() { file_.sync(); }

 private:
  AppendFile file_;
};

}  // namespace ttt::launch
