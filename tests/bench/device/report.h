#pragma once
// The rows that benchmarks of a device end in: a table for people and a file of JSON lines for programs.

#include <fstream>
#include <functional>
#include <string>

#include "core/base/error.h"
#include "tests/bench/device/measure.h"

namespace ttt::bench {

/// One measurement. What does not apply is 0 and not printed.
struct Row {
  std::string work;   // "ttt_linear forward"
  std::string shape;  // "B=22 H=12 T=2048"
  Times times;
  double tokens = 0;  // of one repeat: tokens of the batch
  /// The least that the work must do, by formula: operations (a multiply-add counts two), and bytes when every input
  /// is read and every output written once.
  double flops = 0;
  double bytes = 0;
  /// Of a whole step: its operations by the model's formula, to set against the data sheet's peak (MFU).
  double model_flops = 0;
  std::int64_t peak_bytes = 0;
  std::string attention;  // what computes it (attention_of); empty: there is none
};

/// Prints each row as it comes, so that what is done survives a timeout, and goes on after one that fails. The
/// roofline's share is the time that the ceilings allow, by operations or bytes whichever takes longer, over the time
/// taken.
class Report {
 public:
  /// `json_path` may be empty. Lines are appended.
  Report(Stream& stream, const std::string& json_path);

  /// Does `measure`, which adds rows. What it throws is said in their place: a row of this work and shape that failed.
  void attempt(const std::string& work, const std::string& shape,
               const std::function<void()>& measure);
  /// Of the first that failed.
  [[nodiscard]] ExitCode exit_code() const { return exit_code_; }

  /// Before any row. Without them, rows have no share of the roofline.
  void ceilings(const Ceilings& measured);
  void add(const Row& row);
  /// A row that is left out, and why.
  void skip(const std::string& work, const std::string& shape, const std::string& reason);

  [[nodiscard]] const DeviceFacts& device() const { return device_; }

 private:
  void fail_row(const std::string& work, const std::string& shape, const char* error,
                ExitCode code);

  Stream& stream_;
  DeviceFacts device_;
  Ceilings ceilings_;
  std::ofstream json_;
  ExitCode exit_code_ = ExitCode::kOk;
};

}  // namespace ttt::bench
