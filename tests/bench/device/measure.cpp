#include "tests/bench/device/measure.h"

#include <algorithm>
#include <array>
#include <limits>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/rng.h"
#include "core/base/timer.h"
#include "kernels/copy.h"
#include "kernels/cuda/attention_library.h"
#include "kernels/matmul.h"
#include "kernels/random.h"
#ifdef TTT_BENCH_CUDA
#include <cuda_runtime.h>
#endif

namespace ttt::bench {
namespace {

#ifdef TTT_BENCH_CUDA
void check(cudaError_t status, const char* what) {
  TTT_CHECK(status == cudaSuccess, "{}: {}", what, cudaGetErrorString(status));
}
#endif

/// Marks a place in the stream; the milliseconds between two marks can be asked for once the stream has passed both.
class Mark {
 public:
  Mark() = default;
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;
#ifdef TTT_BENCH_CUDA
  ~Mark() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
#endif

  void set(const Stream& stream) {
#ifdef TTT_BENCH_CUDA
    if (stream.device() == Device::kCuda) {
      if (event_ == nullptr) check(cudaEventCreate(&event_), "an event");
      check(cudaEventRecord(event_, static_cast<cudaStream_t>(stream.native())), "an event");
      return;
    }
#endif
    stream.synchronize();
    seconds_ = clock().seconds();
  }

  [[nodiscard]] double ms_since(const Mark& earlier) const {
#ifdef TTT_BENCH_CUDA
    if (event_ != nullptr) {
      float ms = 0;
      check(cudaEventElapsedTime(&ms, earlier.event_, event_), "the time between events");
      return ms;
    }
#endif
    return 1e3 * (seconds_ - earlier.seconds_);
  }

 private:
  static const Timer& clock() {
    static const Timer timer;
    return timer;
  }

#ifdef TTT_BENCH_CUDA
  cudaEvent_t event_ = nullptr;
#endif
  double seconds_ = 0;
};

constexpr std::int64_t kMostRepeats = 50;

struct SheetRow {
  const char* part_of_name;
  double flops, bytes;
};
// NVIDIA's data sheets; the first that fits. Rates without sparsity.
constexpr std::array kSheet{
    SheetRow{"H200", 989.4e12, 4.8e12},           SheetRow{"H100 PCIe", 756e12, 2.0e12},
    SheetRow{"H100", 989.4e12, 3.35e12},          SheetRow{"B200", 2250e12, 8.0e12},
    SheetRow{"A100-SXM4-80GB", 312e12, 2.039e12},
};

}  // namespace

Times times_of(std::vector<double> repeats_ms) {
  std::ranges::sort(repeats_ms);
  return {repeats_ms[repeats_ms.size() / 2], repeats_ms.front(), repeats_ms.back(),
          std::ssize(repeats_ms)};
}

Times time_work(Stream& stream, double budget_ms, const std::function<void()>& work) {
  std::array<Mark, kMostRepeats + 1> marks;
  work();
  marks[0].set(stream);
  work();
  marks[1].set(stream);
  stream.synchronize();
  const double once = std::max(marks[1].ms_since(marks[0]), 1e-3);
  const auto repeats =
      std::clamp(static_cast<std::int64_t>(budget_ms / once), std::int64_t{3}, kMostRepeats);
  marks[0].set(stream);
  for (std::int64_t i = 1; i <= repeats; ++i) {
    work();
    marks[static_cast<std::size_t>(i)].set(stream);
  }
  stream.synchronize();
  std::vector<double> ms;
  for (std::size_t i = 1; i <= static_cast<std::size_t>(repeats); ++i) {
    ms.push_back(marks[i].ms_since(marks[i - 1]));
  }
  return times_of(std::move(ms));
}

DeviceFacts device_facts(const Stream& stream) {
  DeviceFacts facts{"this machine's processors", 0, 0, std::numeric_limits<std::int64_t>::max(), 0};
  if (stream.device() == Device::kCpu) return facts;
#ifdef TTT_BENCH_CUDA
  int device = 0;
  cudaDeviceProp properties{};
  std::size_t free_bytes = 0;
  std::size_t all_bytes = 0;
  check(cudaGetDevice(&device), "the current device");
  check(cudaGetDeviceProperties(&properties, device), "the device's properties");
  check(cudaMemGetInfo(&free_bytes, &all_bytes), "the device's memory");
  facts.name = properties.name;
  facts.free_bytes = static_cast<std::int64_t>(free_bytes);
  facts.l2_bytes = properties.l2CacheSize;
#else
  facts.name = "the emulator";
#endif
  for (const SheetRow& row : kSheet) {
    if (facts.name.find(row.part_of_name) == std::string::npos) continue;
    facts.sheet_flops = row.flops;
    facts.sheet_bytes = row.bytes;
    break;
  }
  return facts;
}

std::string attention_of(TensorView q, const Stream& stream) {
  if (stream.device() == Device::kCpu) return "own";
  return kernels::cuda::library_for(q, q, {q}) == nullptr ? "own" : "cudnn";
}

Ceilings measure_ceilings(Stream& stream, double budget_ms, std::int64_t size,
                          std::int64_t elements) {
  const memory::Scope scope(memory::Purpose{}, memory::Place::kDevice);
  const CounterRng rng(1, "ceilings");
  const bool is_cpu = stream.device() == Device::kCpu;
  const auto random = [&](const Shape& shape) {
    Tensor wide(shape, DType::kF32);
    kernels::random_normal(rng, 1, wide, stream);
    return is_cpu ? wide : kernels::to_dtype(wide, DType::kBF16, stream);
  };
  Ceilings ceilings;
  {
    const Tensor x = random({size, size});
    const Tensor w = random({size, size});
    const Tensor y = random({size, size});
    const Times times = time_work(stream, budget_ms, [&] {
      kernels::linear_forward(x, w, {}, y, kernels::Precision::kBF16, stream);
    });
    const auto n = static_cast<double>(size);
    ceilings.flops = 2 * n * n * n / (1e-3 * times.median_ms);
  }
  const Tensor from = random({elements});
  const Tensor to = random({elements});
  const Times times = time_work(stream, budget_ms, [&] { kernels::copy(from, to, stream); });
  ceilings.bytes = 2 * static_cast<double>(from.view().num_bytes()) / (1e-3 * times.median_ms);
  return ceilings;
}

}  // namespace ttt::bench
