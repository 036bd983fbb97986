#include "tests/bench/device/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace ttt::bench {
namespace {

// "12.3 TFLOP/s", or nothing.
std::string rate(double value, double unit, const char* name) {
  return value > 0 ? fmt::format("{:8.2f} {}", value / unit, name) : std::string(16, ' ');
}
std::string percent(double share) {
  return share > 0 ? fmt::format("{:5.1f} %", 100 * share) : std::string(7, ' ');
}

void write_line(std::ofstream& file, const nlohmann::json& line) {
  if (!file.is_open()) return;
  file << line.dump() << std::endl;  // flushed: a later row may meet a timeout
  if (!file) fail(ExitCode::kIo, "the results cannot be written");
}

// Where the table is read while it grows.
void print(const std::string& line) {
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

}  // namespace

Report::Report(Stream& stream, const std::string& json_path)
    : stream_(stream), device_(device_facts(stream)) {
  if (!json_path.empty()) {
    json_.open(json_path, std::ios::app);
    if (!json_) fail(ExitCode::kIo, "{}: cannot be written", json_path);
  }
  print(fmt::format("device: {}; data sheet: {:.0f} TFLOP/s of bf16, {:.2f} TB/s", device_.name,
                    device_.sheet_flops / 1e12, device_.sheet_bytes / 1e12));
}

void Report::attempt(const std::string& work, const std::string& shape,
                     const std::function<void()>& measure) {
  try {
    return measure();
  } catch (const Error& error) {
    fail_row(work, shape, error.what(), error.code());
  } catch (const std::exception& error) {
    fail_row(work, shape, error.what(), ExitCode::kInternal);
  }
  // What it left in the queue may still use blocks that the host writes next.
  try {
    stream_.synchronize();
  } catch (const Error&) {  // the next row says so
  }
}

void Report::fail_row(const std::string& work, const std::string& shape, const char* error,
                      ExitCode code) {
  print(fmt::format("{:<34} {:<30} FAILED: {}", work, shape, error));
  write_line(json_, {{"work", work}, {"shape", shape}, {"failed", error}});
  if (exit_code_ == ExitCode::kOk) exit_code_ = code;
}

void Report::ceilings(const Ceilings& measured) {
  ceilings_ = measured;
  if (measured.flops > 0) {
    print(fmt::format(
        "measured ceilings: product of bf16 matrices {:.2f} TFLOP/s, copy {:.3f} TB/s read and "
        "written",
        measured.flops / 1e12, measured.bytes / 1e12));
    write_line(json_, {{"work", "ceilings"},
                       {"device", device_.name},
                       {"flops_per_second", measured.flops},
                       {"bytes_per_second", measured.bytes},
                       {"sheet_flops_per_second", device_.sheet_flops},
                       {"sheet_bytes_per_second", device_.sheet_bytes}});
  }
  print(fmt::format("\n{:<34} {:<30} {:>10} {:>9} {:>15} {:>16} {:>13} {:>8} {:>7}", "work",
                    "shape", "median ms", "+-", "tokens/s", "operations", "bytes", "roofline",
                    "MFU"));
}

void Report::add(const Row& row) {
  const double seconds = 1e-3 * row.times.median_ms;
  TTT_CHECK(seconds > 0 && row.tokens > 0, "{} {}: nothing was measured", row.work, row.shape);
  const double floor = std::max(ceilings_.flops > 0 ? row.flops / ceilings_.flops : 0,
                                ceilings_.bytes > 0 ? row.bytes / ceilings_.bytes : 0);
  const double mfu = device_.sheet_flops > 0 ? row.model_flops / seconds / device_.sheet_flops : 0;
  const double flops = std::max(row.flops, row.model_flops) / seconds;
  std::string line = fmt::format(
      "{:<34} {:<30} {:>10.3f} {:>7.1f} % {:>15.0f} {} {} {:>8} {:>7}",
      row.attention.empty() ? row.work : fmt::format("{} ({})", row.work, row.attention), row.shape,
      row.times.median_ms, 50 * (row.times.most_ms - row.times.least_ms) / row.times.median_ms,
      row.tokens / seconds, rate(flops, 1e12, "TFLOP/s"), rate(row.bytes / seconds, 1e12, "TB/s"),
      percent(floor / seconds), percent(mfu));
  if (row.peak_bytes > 0) {
    line += fmt::format("  peak {:.2f} GiB", static_cast<double>(row.peak_bytes) / (1 << 30));
  }
  const bool fits_l2 = row.bytes > 0 && row.bytes < static_cast<double>(device_.l2_bytes);
  if (fits_l2) line += "  fits L2";
  print(line);
  nlohmann::json json = {{"work", row.work},
                         {"shape", row.shape},
                         {"device", device_.name},
                         {"median_ms", row.times.median_ms},
                         {"least_ms", row.times.least_ms},
                         {"most_ms", row.times.most_ms},
                         {"repeats", row.times.repeats},
                         {"tokens_per_second", row.tokens / seconds},
                         {"flops_per_second", flops},
                         {"bytes_per_second", row.bytes / seconds},
                         {"share_of_roofline", floor / seconds},
                         {"mfu", mfu},
                         {"mfu_denominator", device_.sheet_flops},
                         {"peak_bytes", row.peak_bytes},
                         {"fits_l2", fits_l2}};
  if (!row.attention.empty()) json["attention"] = row.attention;
  write_line(json_, json);
}

void Report::skip(const std::string& work, const std::string& shape, const std::string& reason) {
  print(fmt::format("{:<34} {:<30} not measured: {}", work, shape, reason));
  write_line(json_, {{"work", work}, {"shape", shape}, {"not_measured", reason}});
}

}  // namespace ttt::bench
