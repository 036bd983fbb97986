#pragma once
// The line a person watches: refreshed in place on a terminal, one line a call elsewhere.

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

namespace ttt::launch {

/// What is not known is absent, and its part of the line is left out.
struct Progress {
  std::int64_t step = 0;
  std::int64_t num_steps = 0;
  std::optional<double> loss;
  std::optional<double> learning_rate;
  std::optional<double> grad_norm;
  std::optional<double> tokens_per_second;  // all ranks together
  int num_ranks = 1;
  std::optional<double> flops_per_second;  // a rank
  std::optional<double> peak_flops;        // a rank; MFU is shown only with it
  std::optional<double> memory_bytes;      // the most of this rank
  std::optional<double> data_share;        // of the time, 0 to 1
  std::optional<double> communication_share;
  std::optional<double> seconds_left;
};

/// "step 1200/4800 | loss 3.4123 | ppl 30.33 | lr 2.9e-03 | gnorm 0.41 | 1.31M tok/s (163.9k/rank) |
/// 412 GF/s | MFU 41.7% of 989.0 TF/s | mem 71.2 GiB | data 0.3% comm 6.1% | ETA 1h12m"
std::string format_progress(const Progress& progress);

/// "1.31M": three digits and k, M, G, T or P.
std::string format_count(double value);
/// "45s", "12m05s", "1h12m", "3d04h".
std::string format_duration(double seconds);

/// Columns of the terminal behind a file descriptor; 0 when it is not a terminal.
int terminal_columns(int descriptor);

class ProgressLine {
 public:
  /// `out` outlives this. With `columns` > 0 (a terminal) the line is overwritten until `finish`,
  /// and cut to the width, since a wrapped line cannot be erased.
  ProgressLine(std::ostream& out, int columns) : out_(out), columns_(columns) {}
  ~ProgressLine() { finish(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void show(const Progress& progress);
  /// Keeps the last line and starts a new one, before other output.
  void finish();

 private:
  std::ostream& out_;
  int columns_;
  bool is_open_ = false;
};

}  // namespace ttt::launch
