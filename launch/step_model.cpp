#include "launch/step_model.h"

#include <algorithm>
#include <string_view>

#include "configs/sequence_split.h"
#include "core/sequence_exchange.h"
#include "launch/trainer.h"

namespace ttt::launch {
namespace {

using config::MachineConfig;
using dist::RankGroup;
using dist::Volume;
using kernels::OpCall;
using kernels::WorkKind;

double number(std::int64_t value) { return static_cast<double>(value); }

// FLOP of one pair's mini-batch at the sizes of InnerLoop's step times (docs/planning.md).
constexpr double kLinearStepFlops = 16 * 28672.0;
constexpr double kMlpStepFlops = 16 * 249856.0;

double inner_loop_seconds(const OpCall& call, const MachineConfig& machine) {
  const config::InnerLoop& inner = call.is_mlp ? machine.mlp() : machine.linear();
  const double fraction = call.is_backward ? inner.backward_fraction() : inner.forward_fraction();
  const double step =
      call.is_backward ? inner.backward_step_seconds() : inner.forward_step_seconds();
  const double passes = call.is_backward ? 3 : 1;
  const double relative = call.flops / passes / (call.pairs * call.serial_steps) /
                          (call.is_mlp ? kMlpStepFlops : kLinearStepFlops);
  return std::max(call.flops / (machine.matmul_flops() * fraction),
                  call.serial_steps * step * relative);
}

double link_seconds(const config::Link& link, double bytes, double messages) {
  return bytes == 0 ? 0 : messages * link.latency_seconds() + bytes / link.bytes_per_second();
}

double transfer_seconds(const Volume& traffic, const MachineConfig& machine) {
  return link_seconds(machine.intra_node(), traffic.intra_bytes, traffic.intra_messages) +
         link_seconds(machine.inter_node(), traffic.inter_bytes, traffic.inter_messages);
}

// The part of a transfer that computing for `cover` seconds does not hide: at least the last of `pieces`.
double exposed(double transfer, double cover, double pieces) {
  return std::max(transfer / pieces, transfer - cover * (pieces - 1) / pieces);
}

bool passes_state(const config::RunConfig& config) {
  return config::resolve_sequence_exchange(config) == config::ParallelConfig::STATE_PASSING;
}

/// What differs of an op when the heads have been exchanged: a rank has all tokens of 1 / S of the heads.
OpCall after_head_exchange(OpCall call, double ranks) {
  call.pairs /= ranks;
  call.serial_steps *= ranks;
  const bool is_quadratic = std::string_view(call.op).starts_with("attention");
  if (is_quadratic) call.flops *= ranks;
  return call;
}

bool is_core(const OpCall& call) {
  const std::string_view op = call.op;
  return op.starts_with("ttt_") || op.starts_with("linear_attention");
}

/// Groups of a pass's rows, each of which runs and sends its state by itself (core/sequence_exchange.h).
double num_state_groups(const config::RunConfig& config, const StepTrace& trace,
                        const MachineConfig& machine) {
  if (config.parallel().sequence_ranks() == 1 || !passes_state(config)) return 1;
  const Device device = machine.kind() == MachineConfig::CUDA ? Device::kCuda : Device::kCpu;
  const std::int64_t rows = rows_of_state_group(trace.rows, config.model().num_heads(), device);
  return number((trace.rows + rows - 1) / rows);
}

/// A core's call on one of the groups.
OpCall of_state_group(OpCall call, double groups) {
  call.pairs /= groups;
  call.flops /= groups;
  call.bytes /= groups;
  return call;
}

struct Sums {
  StepPrediction* prediction = nullptr;
  const MachineConfig& machine;
  double state_forward = 0, state_backward = 0;  // one layer's core, of one group of rows

  void add(const OpCall& call, double times) {
    const double seconds = times * seconds_of(call, machine);
    switch (call.kind) {
      case WorkKind::kMatmul:
        prediction->matmul += seconds;
        break;
      case WorkKind::kInnerLoop:
        prediction->inner_loop += seconds;
        break;
      case WorkKind::kAttention:
        prediction->attention += seconds;
        break;
      case WorkKind::kMemory:
        prediction->memory_bound += seconds;
        break;
    }
    const std::string_view op = call.op;
    if (op == "ttt_forward" || op == "linear_attention_forward") state_forward = seconds / times;
    if (op == "ttt_backward" || op == "linear_attention_backward") state_backward = seconds / times;
  }
};

/// To the next rank in forward and to the one before in backward: of two ranks each does one of these, the others both.
Volume there_and_back(const Volume& there, const Volume& back, std::int64_t ranks) {
  Volume both = there;
  both += back;
  return ranks > 2 ? both : back;  // which is no less than there
}

// Halos: the second forward of recomputation is given the first one's again (core/sequence_exchange.h).
void add_halos(const config::RunConfig& config, const StepTrace& trace, const RankGroup& group,
               double row_bytes, const MachineConfig& machine, StepPrediction& result) {
  const config::ModelConfig& model = config.model();
  const double of_pre_conv = model.pre_conv() ? 1 : 0;
  const double of_qk = model.share_qk() && passes_state(config) ? 1 : 0;
  const Volume halo =
      dist::send_to_neighbour(number(trace.rows * (model.conv_kernel() - 1)) * row_bytes, group);
  const double count = number(model.num_layers()) * number(trace.micro_batches);
  const Volume each_way = count * (of_pre_conv + of_qk) * halo;
  result.sequence_traffic += there_and_back(each_way, each_way, group.ranks);
  result.exchange += 2 * transfer_seconds(each_way, machine);
}

// One micro-batch: heads or states, and the convolutions' halos.
void add_sequence_exchange(const config::RunConfig& config, const StepTrace& trace,
                           const Sums& sums, std::int64_t ranks_per_node,
                           std::int64_t element_bytes, StepPrediction& result) {
  const config::ModelConfig& model = config.model();
  const std::int64_t ranks = config.parallel().sequence_ranks();
  const RankGroup group{ranks, 1, ranks_per_node};
  const double micro_batches = number(trace.micro_batches);
  const double layers = number(model.num_layers());
  const double rows = number(trace.rows);
  const double channels = number(model.hidden_size());
  add_halos(config, trace, group, channels * number(element_bytes), sums.machine, result);
  if (passes_state(config)) {
    const double groups = num_state_groups(config, trace, sums.machine);
    const Volume state = dist::send_to_neighbour(rows / groups * state_bytes(config), group);
    const Volume states = layers * micro_batches * groups * state;
    result.sequence_traffic += there_and_back(states, states, ranks);
    // A wavefront: a rank trails its neighbour by one core of one group and one message, once a pass.
    result.bubble +=
        micro_batches * number(ranks - 1) *
        (sums.state_forward + sums.state_backward + 2 * transfer_seconds(state, sums.machine));
    return;
  }
  const std::int64_t kv_heads =
      model.mixer() == config::ATTENTION && model.attention().num_kv_heads() > 0
          ? model.attention().num_kv_heads()
          : model.num_heads();
  const double kv = channels * number(kv_heads) / number(model.num_heads());
  const bool has_rate = model.mixer() == config::TTT_LINEAR || model.mixer() == config::TTT_MLP;
  const double passes = config.train().recompute_blocks() ? 3 : 2;  // forward (twice), backward
  // q, k (or what both are made of), v there and the output back, or their gradients; the inner rates in fp32.
  const double token_bytes =
      (2 * channels + kv + (model.share_qk() ? 0 : kv)) * number(element_bytes) +
      (has_rate ? 4 * number(model.num_heads()) : 0);
  const Volume all = dist::all_to_all(token_bytes * number(trace.micro_batch_tokens), group);
  result.sequence_traffic += passes * layers * micro_batches * all;
  result.exchange += passes * layers * micro_batches * transfer_seconds(all, sums.machine);
}

void add_gradient_sums(const config::RunConfig& config, std::int64_t world, const StepTrace& trace,
                       const MachineConfig& machine, StepPrediction& result) {
  const std::int64_t sequence_ranks = config.parallel().sequence_ranks();
  const RankGroup data{world / sequence_ranks, sequence_ranks, machine.ranks_per_node()};
  const RankGroup sequence{sequence_ranks, 1, machine.ranks_per_node()};
  const double bytes = number(trace.num_elements * size_of(dtype_of(config.train().precision())));
  const double forward_and_backward =
      (result.compute() - result.update) / number(trace.micro_batches);  // the last micro-batch
  const double pieces = number(config.model().num_layers());
  const double part = bytes / number(data.ranks);
  Volume reduce = dist::reduce_scatter(bytes, data);
  reduce += dist::reduce_scatter(part, sequence);
  Volume gather = dist::all_gather(part, sequence);  // of parameters; without ZeRO-1 of the sums
  gather += dist::all_gather(bytes, data);
  result.gradient_traffic = reduce;
  result.gradient_traffic += gather;
  const double reduce_seconds = transfer_seconds(reduce, machine);
  const double gather_seconds = transfer_seconds(gather, machine);
  result.gradients = reduce_seconds + gather_seconds;
  const double backward = forward_and_backward * 2 / 3;
  if (!config.parallel().overlap()) {
    result.exposed_gradients = result.gradients;
  } else if (has_zero(config)) {
    result.exposed_gradients = exposed(reduce_seconds, backward, pieces) +
                               exposed(gather_seconds, forward_and_backward / 3, pieces);
  } else {
    result.exposed_gradients = exposed(result.gradients, backward, pieces);
  }
}

}  // namespace

double seconds_of(const OpCall& call, const MachineConfig& machine) {
  for (const config::OpRate& rate : machine.op()) {
    if (rate.name() != call.op) continue;
    const double seconds = rate.flops_per_second() > 0 ? call.flops / rate.flops_per_second()
                                                       : call.bytes / rate.bytes_per_second();
    return rate.seconds_a_call() + seconds;
  }
  double seconds = call.bytes / (machine.memory_bandwidth() * machine.memory_fraction());
  if (call.kind == WorkKind::kMatmul) {
    seconds = std::max(seconds, call.flops / (machine.matmul_flops() * machine.matmul_fraction()));
  } else if (call.kind == WorkKind::kAttention) {
    seconds =
        std::max(seconds, call.flops / (machine.matmul_flops() * machine.attention_fraction()));
  } else if (call.kind == WorkKind::kInnerLoop) {
    seconds = std::max(seconds, inner_loop_seconds(call, machine));
  }
  return std::max(seconds, machine.op_seconds());
}

double state_bytes(const config::RunConfig& config) {
  const config::ModelConfig& model = config.model();
  const std::int64_t heads = model.num_heads();
  const std::int64_t dim = model.hidden_size() / heads;
  const bool is_f64 = config.train().precision() == config::FP64;
  std::int64_t elements = 0;
  if (model.mixer() == config::TTT_LINEAR) {
    elements = dim * dim + (model.ttt().inner_bias() ? dim : 0);
  } else if (model.mixer() == config::TTT_MLP) {
    const std::int64_t width = model.ttt().mlp_expansion() * dim;
    elements = 2 * dim * width + (model.ttt().inner_bias() ? width + dim : 0);
  } else if (model.mixer() == config::LINEAR_ATTENTION) {
    elements = dim * dim + dim;
  }
  return number(heads * elements * (is_f64 ? 8 : 4));
}

StepPrediction predict_step(const config::RunConfig& config, std::int64_t world,
                            const StepTrace& trace, const MachineConfig& machine) {
  StepPrediction result;
  Sums sums{&result, machine};
  const std::int64_t sequence_ranks = config.parallel().sequence_ranks();
  const bool has_heads = sequence_ranks > 1 && !passes_state(config);
  const double groups = num_state_groups(config, trace, machine);
  for (const auto& [call, count] : trace.micro_batch) {
    const double times = number(count * trace.micro_batches);
    if (has_heads) {
      sums.add(after_head_exchange(call, number(sequence_ranks)), times);
    } else if (is_core(call)) {
      sums.add(of_state_group(call, groups), groups * times);
    } else {
      sums.add(call, times);
    }
  }
  for (const auto& [call, count] : trace.update) {
    result.update += number(count) * seconds_of(call, machine);
  }
  const bool is_bf16 =
      machine.kind() == MachineConfig::CUDA && config.train().precision() == config::BF16;
  const std::int64_t element = is_bf16 ? 2 : size_of(dtype_of(config.train().precision()));
  if (sequence_ranks > 1) {
    add_sequence_exchange(config, trace, sums, machine.ranks_per_node(), element, result);
  }
  if (world > 1) add_gradient_sums(config, world, trace, machine, result);
  return result;
}

double model_flops_utilization(const config::RunConfig& config, std::int64_t world,
                               double flops_per_token, double step_seconds,
                               const MachineConfig& machine) {
  const double tokens =
      number(config.train().batch_size()) * number(config.data().context_length());
  return 3 * flops_per_token * tokens / (number(world) * machine.matmul_flops() * step_seconds);
}

}  // namespace ttt::launch
