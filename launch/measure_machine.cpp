#include <unistd.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <functional>
#include <map>
#include <vector>

#include "core/base/timer.h"
#include "kernels/copy.h"
#include "launch/machine.h"
#include "launch/step_trace.h"

namespace ttt::launch {
namespace {

constexpr int kRepeats = 5;

double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double median(std::array<double, kRepeats> values) {
  std::ranges::sort(values);
  return values[kRepeats / 2];
}

// Of one call. A thread that waits may or may not burn its processor, so only one thread's processor time is its time.
template <typename F>
double seconds_of_call(F&& run, int threads) {
  constexpr double kShortest = 2e-3;
  std::array<double, kRepeats> seconds{};
  run();  // plans, pages
  std::int64_t calls = 1;
  for (int repeat = 0; repeat < kRepeats;) {
    const double processor = processor_seconds();
    const Timer wall;
    for (std::int64_t i = 0; i < calls; ++i) run();
    const double spent = threads == 1 ? processor_seconds() - processor : wall.seconds();
    if (spent < kShortest && calls < 1000000) {
      calls *= 4;
      continue;
    }
    seconds[static_cast<std::size_t>(repeat++)] = spent / static_cast<double>(calls);
  }
  return median(seconds);
}

struct Work {
  double flops = 0, bytes = 0, seconds = 0;
};

// The call on operands that are as cold as in a step: it goes round copies that together take `bytes`, the step's own memory,
// since other ops touch up to as much before one comes back to a tensor.
std::function<void()> call_among_others(const kernels::OpCall& call, std::int64_t bytes,
                                        Stream& stream) {
  constexpr double kMostCopies = 256;
  const double wanted = static_cast<double>(bytes) / std::max(call.bytes, 1.0);
  const auto copies = static_cast<std::size_t>(std::clamp(wanted, 1.0, kMostCopies));
  std::vector<std::function<void()>> runs;
  for (std::size_t i = 0; i < copies; ++i) runs.push_back(call.prepare(stream));
  return
      [runs = std::move(runs), next = std::size_t{0}]() mutable { runs[next++ % runs.size()](); };
}

// Every op at the shapes of a step, weighted as often as it is called.
void measure_ops(const StepTrace& trace, int threads, Stream& stream,
                 config::MachineConfig& machine) {
  std::map<std::string, Work> by_op;
  for (const std::vector<CountedCall>* calls : {&trace.micro_batch, &trace.update}) {
    const std::int64_t times = calls == &trace.micro_batch ? trace.micro_batches : 1;
    for (const auto& [call, count] : *calls) {
      const auto number = static_cast<double>(count * times);
      Work& work = by_op[call.op];
      work.flops += number * call.flops;
      work.bytes += number * call.bytes;
      work.seconds +=
          number * seconds_of_call(call_among_others(call, trace.memory.peak, stream), threads);
    }
  }
  double best_product = 0;
  for (const auto& [name, work] : by_op) {
    config::OpRate& rate = *machine.add_op();
    rate.set_name(name);
    if (work.flops > 0) {
      rate.set_flops_per_second(work.flops / work.seconds);
      if (name.starts_with("linear_"))
        best_product = std::max(best_product, rate.flops_per_second());
    } else {
      rate.set_bytes_per_second(work.bytes / work.seconds);
    }
  }
  machine.set_matmul_flops(best_product);
}

// Between ranks 0 and 1, both sending; the others wait.
config::Link measure_link(dist::Communicator& communicator, Stream& stream) {
  config::Link link;
  constexpr std::int64_t kLarge = 1 << 20;
  const auto exchange_seconds = [&](std::int64_t elements) {
    std::array<double, kRepeats> seconds{};
    const Tensor out = Tensor::zeros({elements}, DType::kF32);
    const Tensor in({elements}, DType::kF32);
    for (int repeat = -1; repeat < kRepeats; ++repeat) {
      communicator.barrier();
      const Timer timer;
      if (communicator.rank() < 2) communicator.exchange(out, in, 1 - communicator.rank(), stream);
      if (repeat >= 0) seconds[static_cast<std::size_t>(repeat)] = timer.seconds();
    }
    return median(seconds);
  };
  link.set_latency_seconds(exchange_seconds(1));
  const double large = exchange_seconds(kLarge) - link.latency_seconds();
  link.set_bytes_per_second(4.0 * kLarge / std::max(large, 1e-9));
  return link;
}

}  // namespace

config::MachineConfig measure_machine(const config::RunConfig& config,
                                      dist::Communicator& communicator, int threads) {
  const StepTrace trace = trace_step(config, communicator.size(), {});
  Stream stream;
  config::MachineConfig machine;
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  machine.set_name(host.data());
  machine.set_kind(config::MachineConfig::CPU);
  machine.set_ranks_per_node(communicator.local_size());
  machine.set_memory_bytes(static_cast<double>(sysconf(_SC_PHYS_PAGES)) *
                           static_cast<double>(sysconf(_SC_PAGE_SIZE)) / communicator.local_size());
  measure_ops(trace, threads, stream, machine);
  const Tensor from = Tensor::zeros({std::int64_t{16} << 20}, DType::kF32);
  const Tensor to(from.shape(), DType::kF32);
  const double copy = seconds_of_call([&] { kernels::copy(from, to, stream); }, threads);
  machine.set_memory_bandwidth(2 * static_cast<double>(from.view().num_bytes()) / copy);
  config::Link link;
  link.set_latency_seconds(0);
  link.set_bytes_per_second(machine.memory_bandwidth());
  if (communicator.size() > 1) link = measure_link(communicator, stream);
  *machine.mutable_intra_node() = link;
  *machine.mutable_inter_node() = link;
  std::string text;
  machine.SerializeToString(&text);
  machine.ParseFromString(communicator.gather_strings(text).front());
  return machine;
}

}  // namespace ttt::launch
