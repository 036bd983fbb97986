#include "launch/step_trace.h"

#include <algorithm>
#include <bit>
#include <map>
#include <string>
#include <utility>

#include "configs/sequence_split.h"
#include "core/model.h"
#include "core/optimizer.h"
#include "dist/tree_reduction.h"
#include "kernels/non_finite.h"
#include "launch/trainer.h"

namespace ttt::launch {
namespace {

std::int64_t divided_up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

// Of the parts in which the sequence ranks hold a sequence, or of the documents that one of them runs.
std::int64_t longest_segment(const config::RunConfig& config) {
  const std::int64_t ranks = config.parallel().sequence_ranks();
  const std::int64_t length = config.data().context_length();
  if (ranks == 1) return length;
  const auto bounds = config::sequence_bounds(length, config::sequence_unit(config), ranks);
  const bool has_documents = config.data().reset_at_bos();
  std::int64_t longest = has_documents ? config::longest_whole_document(config) : 0;
  for (std::size_t i = 1; i < bounds.size(); ++i)
    longest = std::max(longest, bounds[i] - bounds[i - 1]);
  return longest;
}

// What dist/tree_collectives.h receives into.
std::int64_t exchange_elements(const LanguageModel& model, const config::RunConfig& config,
                               std::int64_t world) {
  if (world == 1) return 0;
  std::int64_t largest = 0;
  for (const FlatRange& bucket : model.buckets(config.parallel().bucket_elements()))
    largest = std::max(largest, bucket.size());
  return std::has_single_bit(static_cast<std::uint64_t>(world)) ? divided_up(largest, 2) : largest;
}

std::vector<CountedCall> counted(std::vector<kernels::OpCall> calls) {
  std::vector<CountedCall> result;
  std::map<std::string, std::size_t> place;
  for (kernels::OpCall& call : calls) {
    const auto [entry, is_new] = place.emplace(call.op + call.shapes, result.size());
    if (is_new) {
      result.push_back({std::move(call), 1});
    } else {
      ++result[entry->second].count;
    }
  }
  return result;
}

}  // namespace

bool has_zero(const config::RunConfig& config) {
  return config.parallel().zero() == config::ParallelConfig::ZERO_OPTIMIZER;
}

// The order of Trainer::Trainer and Trainer::step.
StepTrace trace_step(const config::RunConfig& config, std::int64_t world,
                     const kernels::PlannedDevice& device) {
  const DType dtype = dtype_of(config.train().precision());
  TTT_CHECK(device.device == Device::kCpu || dtype != DType::kF64, "fp64 is planned on CUDA");
  const kernels::AddressSpace addresses;
  kernels::PlanningTrace trace;
  Stream stream = kernels::make_planning_stream(device, trace);
  Context context{stream, precision_of(config.train().precision())};
  memory::reset_peak();
  StepTrace result;

  LanguageModel model(config.model(), config.data().context_length());
  model.parameters().allocate(dtype);
  const bool rounds = keeps_rounded(config, device.device);
  if (rounds) model.parameters().keep_rounded(stream);
  trace.calls.clear();  // that was once
  result.num_parameters = model.parameters().num_parameters();
  result.num_elements = model.parameters().num_elements();
  result.flops_per_token = model.flops_per_token(config.data().context_length());
  result.memory.parameters = memory::live_bytes();

  const std::int64_t owned =
      has_zero(config) ? divided_up(result.num_elements, world) : result.num_elements;
  Optimizer optimizer(config.optimizer(), config.train().steps(), owned, dtype);
  result.memory.moments = memory::live_bytes() - result.memory.parameters;

  dist::TreeAccumulator accumulator({result.num_elements}, dtype);
  const Tensor scratch({exchange_elements(model, config, world)}, dtype);
  const std::int64_t sequence_ranks = config.parallel().sequence_ranks();
  const std::int64_t data_ranks = world / sequence_ranks;
  const std::int64_t shards = config.parallel().virtual_shards() / data_ranks;
  const bool has_documents = config.data().reset_at_bos();
  result.rows = has_documents ? 1 : config.train().micro_batch_size();
  const Shape rows{result.rows, longest_segment(config)};
  const Shape read{config.train().micro_batch_size(),
                   has_documents ? config.data().context_length() : rows[1]};
  result.micro_batch_tokens = rows.numel();
  result.micro_batches = config.train().batch_size() / data_ranks / result.rows;
  for (std::int64_t shard = 0; shard < shards; ++shard) {
    model.parameters().bind_gradients(accumulator.slot(stream));
    if (shard == shards - 1) {  // the most sums wait now; every micro-batch needs the same besides
      const Tensor ids(read, DType::kI64);
      const Tensor targets(read, DType::kI64);
      const Tensor mask(read, DType::kF64);
      const Tensor weight(read, DType::kF64);
      const Tensor nll(read, DType::kF64);
      const SequenceRange run{0, rows[0], 0, rows[1]};
      const std::int64_t before = memory::live_bytes();
      std::vector<kernels::OpCall> update = std::exchange(trace.calls, {});
      model.forward_backward({run.of(ids), run.of(targets), run.of(weight)}, run.of(nll),
                             config.train().recompute_blocks(), context);
      result.micro_batch = counted(std::exchange(trace.calls, std::move(update)));
      result.memory.activations = trace.live_at_loss - before;
    }
    if (shard < shards - 1) accumulator.push(stream);
  }
  const TensorView gradients = accumulator.merge({0, result.num_elements}, stream);
  result.memory.gradients = memory::live_bytes() - result.memory.parameters - result.memory.moments;
  // Every rank looks through its whole gradient, before the ranks' are summed.
  const Tensor places({divided_up(result.num_elements, kernels::kNonFiniteBlock)}, DType::kF64);
  const Tensor first_place({1}, DType::kF64);
  kernels::find_non_finite(gradients, 0, places, stream);
  kernels::smallest(places, first_place, stream);
  const auto own = [&](TensorView all) { return all.empty() ? all : all.slice(0, owned); };
  optimizer.update(own(model.parameters().values()), own(model.parameters().rounded()),
                   own(gradients), 0, stream);
  if (rounds && world > 1 && has_zero(config)) model.parameters().keep_rounded(stream);
  result.update = counted(std::move(trace.calls));

  result.memory.peak = memory::peak_bytes();
  result.memory.held = memory::peak_held_bytes();
  result.memory.library = kernels::library_workspace_bytes(device.device);
  result.memory.is_host = device.device == Device::kCpu;
  if (is_saved_asynchronously(config))
    result.memory.snapshot = 3 * divided_up(result.num_elements, world) * size_of(dtype);
  result.memory.workspace = result.memory.peak - result.memory.parameters -
                            result.memory.gradients - result.memory.moments -
                            result.memory.activations;
  return result;
}

}  // namespace ttt::launch
