#include "launch/machine.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <cmath>

#include "configs/run_config.h"
#include "launch/append_file.h"

namespace ttt::launch {
namespace {

class Collector final : public google::protobuf::io::ErrorCollector {
 public:
  explicit Collector(std::string source) : source_(std::move(source)) {}
  void AddError(int line, google::protobuf::io::ColumnNumber column,
                const std::string& message) override {
    problems.push_back(fmt::format("{}:{}:{}: {}", source_, line + 1, column + 1, message));
  }
  std::vector<std::string> problems;

 private:
  std::string source_;
};

class Checker {
 public:
  void positive(const char* field, double value) {
    if (!(value > 0) || !std::isfinite(value)) add(field, value, "must be a number > 0");
  }
  void not_negative(const char* field, double value) {
    if (!(value >= 0) || !std::isfinite(value)) add(field, value, "must be a number >= 0");
  }
  void fraction(const char* field, double value) {
    if (!(value > 0 && value <= 1)) add(field, value, "must be in (0, 1]");
  }
  std::vector<std::string> lines;

 private:
  void add(const char* field, double value, const char* reason) {
    lines.push_back(fmt::format("{} = {}: {}", field, value, reason));
  }
};

}  // namespace

config::MachineConfig load_machine(const std::string& path) {
  const std::string text = read_file(path);
  config::MachineConfig machine;
  Collector collector(path);
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&collector);
  if (parser.ParseFromString(text, &machine)) collector.problems = find_machine_problems(machine);
  config::throw_problems(path, collector.problems);
  return machine;
}

std::vector<std::string> find_machine_problems(const config::MachineConfig& machine) {
  Checker check;
  check.positive("memory_bytes", machine.memory_bytes());
  check.fraction("usable_memory_fraction", machine.usable_memory_fraction());
  check.positive("matmul_flops", machine.matmul_flops());
  check.fraction("matmul_fraction", machine.matmul_fraction());
  check.fraction("attention_fraction", machine.attention_fraction());
  check.positive("memory_bandwidth", machine.memory_bandwidth());
  check.fraction("memory_fraction", machine.memory_fraction());
  check.not_negative("op_seconds", machine.op_seconds());
  for (const config::InnerLoop& inner : {machine.linear(), machine.mlp()}) {
    check.not_negative("forward_step_seconds", inner.forward_step_seconds());
    check.not_negative("backward_step_seconds", inner.backward_step_seconds());
    check.fraction("forward_fraction", inner.forward_fraction());
    check.fraction("backward_fraction", inner.backward_fraction());
  }
  check.positive("ranks_per_node", static_cast<double>(machine.ranks_per_node()));
  for (const config::Link& link : {machine.intra_node(), machine.inter_node()}) {
    check.not_negative("latency_seconds", link.latency_seconds());
    check.positive("bytes_per_second", link.bytes_per_second());
  }
  for (const config::OpRate& rate : machine.op()) {
    const bool has_flops = rate.has_flops_per_second();
    check.positive(fmt::format("op {}", rate.name()).c_str(),
                   has_flops ? rate.flops_per_second() : rate.bytes_per_second());
    check.not_negative("seconds_a_call", rate.seconds_a_call());
  }
  check.positive("checkpoint_bandwidth", machine.checkpoint_bandwidth());
  check.not_negative("restart_seconds", machine.restart_seconds());
  check.positive("snapshot_bandwidth", machine.snapshot_bandwidth());
  check.positive("hours_between_failures", machine.hours_between_failures());
  return check.lines;
}

}  // namespace ttt::launch
