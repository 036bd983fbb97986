#include "launch/plan_report.h"

#include <algorithm>
#include <array>

#include "core/model.h"
#include "launch/goodput.h"
#include "launch/svg_plot.h"
#include "launch/trainer.h"

namespace ttt::launch {
namespace {

using kernels::WorkKind;

double number(std::int64_t value) { return static_cast<double>(value); }
std::string gib(double bytes) { return fmt::format("{:.3f} GiB", bytes / 1073741824.0); }
std::string gib(std::int64_t bytes) { return gib(number(bytes)); }

std::string duration(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.1f} us", seconds * 1e6);
  if (seconds < 1) return fmt::format("{:.2f} ms", seconds * 1e3);
  return seconds < 600 ? fmt::format("{:.3f} s", seconds) : fmt::format("{:.2f} h", seconds / 3600);
}

double tokens_a_step(const config::RunConfig& config) {
  return number(config.train().batch_size()) * number(config.data().context_length());
}

// FLOP that one token costs in training as the ops run, recomputation included.
std::string flops_text(const StepTrace& trace) {
  std::array<double, 4> parts{};  // projections, head, inner loop, attention
  for (const auto& [call, count] : trace.micro_batch) {
    const bool is_head = std::string_view(call.op) == "head_cross_entropy";
    const int part = call.kind == WorkKind::kInnerLoop   ? 2
                     : call.kind == WorkKind::kAttention ? 3
                     : is_head                           ? 1
                                                         : 0;
    parts[static_cast<std::size_t>(part)] +=
        number(count) * call.flops / number(trace.micro_batch_tokens);
  }
  return fmt::format(
      "FLOP a token         {:.4g} forward, {:.4g} training (3 forward)\n"
      "  run in training    {:.4g} layers, {:.4g} head, {:.4g} inner loop, {:.4g} attention\n",
      trace.flops_per_token, 3 * trace.flops_per_token, parts[0], parts[1], parts[2], parts[3]);
}

std::string traffic_text(const char* name, const dist::Volume& traffic) {
  return fmt::format("  {:<19}{} to ranks of the node, {} to others ({:.0f} messages)\n", name,
                     gib(traffic.intra_bytes), gib(traffic.inter_bytes),
                     traffic.intra_messages + traffic.inter_messages);
}

double tokens_per_second(const Candidate& candidate) {
  return tokens_a_step(candidate.config) / candidate.time.step();
}

double utilization(const Candidate& candidate, const config::MachineConfig& machine) {
  return model_flops_utilization(candidate.config, candidate.world, candidate.flops_per_token,
                                 candidate.time.step(), machine);
}

}  // namespace

std::string memory_text(const MemoryPlan& memory) {
  return fmt::format(
      "memory a rank        {} (tensors at most {}, taken from the system {}, libraries {})\n"
      "  parameters         {}\n"
      "  gradients          {}\n"
      "  moments            {}\n"
      "  kept for backward  {}\n"
      "  backward and ops   {}\n"
      "  checkpoint's copy  {}{}\n",
      gib(memory.needed()), gib(memory.peak), gib(memory.held), gib(memory.library),
      gib(memory.parameters), gib(memory.gradients), gib(memory.moments), gib(memory.activations),
      gib(memory.workspace), gib(memory.snapshot),
      memory.is_host ? "" : " in the host's memory, not counted above");
}

std::string documents_text(const config::RunConfig& config) {
  if (!config.data().reset_at_bos()) return {};
  return "documents            planned as if every window were one: shorter ones need less "
         "memory,\n"
         "                     and more time for smaller ops\n";
}

std::string candidate_text(const Candidate& candidate, const StepTrace& trace,
                           const config::MachineConfig& machine) {
  const config::RunConfig& config = candidate.config;
  const StepPrediction& time = candidate.time;
  std::string text = fmt::format(
      "machine              {} ({} ranks a node)\n"
      "ranks                {} = {} data x {} sequence, {} virtual shards{}{}\n"
      "step                 {:.0f} tokens: {} micro-batches a rank of {} sequences{}\n"
      "parameters           {}\n",
      machine.name(), machine.ranks_per_node(), candidate.world,
      candidate.world / config.parallel().sequence_ranks(), config.parallel().sequence_ranks(),
      config.parallel().virtual_shards(), has_zero(config) ? ", ZeRO-1" : "",
      config.parallel().overlap() ? ", overlapped" : "", tokens_a_step(config), trace.micro_batches,
      trace.rows, config.train().recompute_blocks() ? ", blocks recomputed" : "",
      trace.num_parameters);
  text += documents_text(config) + flops_text(trace) + memory_text(candidate.memory);
  text += "sent a step          by the rank that sends most\n";
  text += traffic_text("gradients", time.gradient_traffic);
  text += traffic_text("sequence", time.sequence_traffic);
  text += fmt::format(
      "predicted step       {}: {:.4g} tokens/s, {:.4g} a rank, MFU {:.1f} %, computing {:.1f} % "
      "of the time\n"
      "  products           {}\n"
      "  inner loop         {}\n"
      "  attention          {}\n"
      "  bound by memory    {}\n"
      "  sums and optimizer {}\n"
      "  waiting for states {}\n"
      "  sequence exchange  {}\n"
      "  gradient exchange  {} exposed of {}\n",
      duration(time.step()), tokens_per_second(candidate),
      tokens_per_second(candidate) / number(candidate.world), 100 * utilization(candidate, machine),
      100 * time.compute() / time.step(), duration(time.matmul), duration(time.inner_loop),
      duration(time.attention), duration(time.memory_bound), duration(time.update),
      duration(time.bubble), duration(time.exchange), duration(time.exposed_gradients),
      duration(time.gradients));
  return text;
}

std::string choice_text(const std::vector<Candidate>& candidates) {
  constexpr std::size_t kShown = 6;
  const auto running = static_cast<std::size_t>(std::ranges::count_if(
      candidates, [](const Candidate& candidate) { return candidate.runs(); }));
  const auto line = [](const Candidate& candidate, const std::string& reason) {
    return fmt::format("  {:<34} {}\n", candidate.describe(), reason);
  };
  std::string text =
      fmt::format("chosen among         {} ways, {} of which run\n", candidates.size(), running);
  for (std::size_t i = 0; i < std::min(running, kShown); ++i) {
    const Candidate& candidate = candidates[i];
    text += line(candidate,
                 i == 0 ? fmt::format("chosen: {} a step, {}", duration(candidate.time.step()),
                                      gib(candidate.memory.needed()))
                        : fmt::format("{:.3f} times the time, {}",
                                      candidate.time.step() / candidates[0].time.step(),
                                      gib(candidate.memory.needed())));
  }
  for (std::size_t i = running; i < std::min(candidates.size(), running + kShown); ++i) {
    text += line(candidates[i], candidates[i].problem);
  }
  return text;
}

std::string goodput_text(const Candidate& candidate, const StepTrace& trace,
                         const config::MachineConfig& machine) {
  const double bytes =
      3 * number(trace.num_parameters * size_of(dtype_of(candidate.config.train().precision())));
  const auto steps = candidate.config.checkpoint().interval_steps() > 0
                         ? candidate.config.checkpoint().interval_steps()
                         : candidate.config.train().steps();
  const double write = bytes / machine.checkpoint_bandwidth();
  const double copy = bytes / number(candidate.world) / machine.snapshot_bandwidth();
  const bool copies = is_saved_asynchronously(candidate.config);
  const GoodputInputs inputs{copies ? std::min(copy, write) : write, write,
                             number(std::max<std::int64_t>(steps, 1)) * candidate.time.step(),
                             3600 * machine.hours_between_failures() / number(candidate.world),
                             machine.restart_seconds()};
  const Goodput result = goodput(inputs);
  return fmt::format(
      "goodput              {:.2f} % trains: {:.2f} % stands still for checkpoints, {:.2f} % is "
      "lost "
      "to failures\n"
      "  checkpoint         {} every {} ({} steps): {} standing still, written after {}\n"
      "  failures           one in {} on {} ranks, {} to restart\n"
      "  best interval      {} ({:.0f} steps) by Young and Daly, {:.2f} % trains\n",
      100 * result.training, 100 * result.stalled, 100 * result.lost_and_restarting, gib(bytes),
      duration(inputs.interval_seconds), steps, duration(inputs.stall_seconds),
      duration(inputs.write_seconds), duration(inputs.failure_seconds), candidate.world,
      duration(machine.restart_seconds()), duration(result.best_interval_seconds),
      std::max(1.0, result.best_interval_seconds / candidate.time.step()),
      100 * result.at_best_interval);
}

double sweep_efficiency(const Candidate& candidate, const Candidate& first) {
  return tokens_per_second(candidate) / number(candidate.world) /
         (tokens_per_second(first) / number(first.world));
}

std::string sweep_csv(const std::vector<Candidate>& best, const config::MachineConfig& machine) {
  std::string csv =
      "ranks,data_ranks,sequence_ranks,virtual_shards,micro_batch,recompute,step_seconds,"
      "compute_seconds,bubble_seconds,exchange_seconds,exposed_gradient_seconds,gradient_bytes,"
      "sequence_bytes,memory_bytes,tokens_per_second,efficiency,mfu\n";
  for (const Candidate& candidate : best) {
    const config::RunConfig& config = candidate.config;
    const std::int64_t sequence_ranks = config.parallel().sequence_ranks();
    const StepPrediction& time = candidate.time;
    csv += fmt::format(
        "{},{},{},{},{},{},{:.6g},{:.6g},{:.6g},{:.6g},{:.6g},{:.9g},{:.9g},{},{:.6g},{:.5f},"
        "{:.5f}\n",
        candidate.world, candidate.world / sequence_ranks, sequence_ranks,
        config.parallel().virtual_shards(), config.train().micro_batch_size(),
        config.train().recompute_blocks() ? 1 : 0, time.step(), time.compute(), time.bubble,
        time.exchange, time.exposed_gradients, time.gradient_traffic.bytes(),
        time.sequence_traffic.bytes(), candidate.memory.needed(), tokens_per_second(candidate),
        sweep_efficiency(candidate, best.front()), utilization(candidate, machine));
  }
  return csv;
}

std::string sweep_svg(const std::vector<Candidate>& best, const config::MachineConfig& machine) {
  Series efficiency, computing, mfu;
  efficiency.name = "efficiency";
  computing.name = "computing, of the step";
  mfu.name = "MFU";
  for (const Candidate& candidate : best) {
    for (Series* series : {&efficiency, &computing, &mfu}) {
      series->x.push_back(number(candidate.world));
    }
    efficiency.y.push_back(sweep_efficiency(candidate, best.front()));
    computing.y.push_back(candidate.time.compute() / candidate.time.step());
    mfu.y.push_back(utilization(candidate, machine));
  }
  Plot plot;
  plot.title = fmt::format("Predicted scaling on {}", machine.name());
  plot.x_label = "ranks";
  plot.y_label = "fraction";
  plot.series = {efficiency, computing, mfu};
  plot.log_x = true;
  return render_svg(plot);
}

}  // namespace ttt::launch
