#pragma once
// The rows that benchmarks of a device end in: a table for people and a file of JSON lines for programs.

#include <fstream>
#include <string>

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
};

/// Prints each row as it comes, so that what is done survives a timeout. The roofline's share is the time that the
/// ceilings allow, by operations or bytes whichever takes longer, over the time taken.
class Report {
 public:
  /// `json_path` may be empty. Lines are appended.
  Report(DeviceFacts device, const std::string& json_path);

  void ceilings(const Ceilings& measured);
  void add(const Row& row);
  /// A row that could not be measured, and why.
  void skip(const std::string& work, const std::string& shape, const std::string& reason);

  [[nodiscard]] const DeviceFacts& device() const { return device_; }

 private:
  DeviceFacts device_;
  Ceilings ceilings_;
  std::ofstream json_;
};

}  // namespace ttt::bench
