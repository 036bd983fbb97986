// Devices, streams and memory of the CUDA runtime. What the host shares with kernels lies in managed memory: host code
// that fills, reads or saves it needs no second path. What kernels alone use is plain device memory.

#include "kernels/cuda/device.h"

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>

#include "core/base/log.h"
#include "core/base/memory.h"
#include "kernels/cuda/attention_library.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace ttt::kernels::cuda {
namespace {

class CudaEvent final : public QueueEvent {
 public:
  explicit CudaEvent(cudaStream_t stream) {
    // Who waits sleeps: two threads of a rank do so for most of a step.
    check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventBlockingSync),
               "an event");
    check_cuda(cudaEventRecord(event_, stream), "an event");
  }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  ~CudaEvent() override { cudaEventDestroy(event_); }

  void wait() override { check_cuda(cudaEventSynchronize(event_), "a kernel"); }
  [[nodiscard]] cudaEvent_t native() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class CudaTime final : public QueueTime {
 public:
  explicit CudaTime(cudaStream_t stream) {
    check_cuda(cudaEventCreate(&event_), "an event");
    check_cuda(cudaEventRecord(event_, stream), "an event");
  }
  CudaTime(const CudaTime&) = delete;
  CudaTime& operator=(const CudaTime&) = delete;
  ~CudaTime() override { cudaEventDestroy(event_); }

  [[nodiscard]] double seconds_since(const QueueTime& earlier) const override {
    float milliseconds = 0;
    check_cuda(
        cudaEventElapsedTime(&milliseconds, static_cast<const CudaTime&>(earlier).event_, event_),
        "the time between events");
    return milliseconds * 1e-3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// What TTT_GRAPHS says; on by default.
bool graphs_are_on() {
  const char* const value = std::getenv("TTT_GRAPHS");
  const std::string_view name = value == nullptr ? "on" : value;
  if (name != "on" && name != "off")
    fail(ExitCode::kUsage, "TTT_GRAPHS={}: must be on or off", name);
  return name == "on";
}

class CudaGraph final : public CapturedWork {
 public:
  /// `graph` is needed in here only.
  CudaGraph(cudaGraph_t graph, cudaStream_t stream) : stream_(stream) {
    check_cuda(cudaGraphInstantiate(&work_, graph, 0), "a graph");
  }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  // It may still run.
  ~CudaGraph() override {
    cudaStreamSynchronize(stream_);
    cudaGraphExecDestroy(work_);
  }

  void replay() override { check_cuda(cudaGraphLaunch(work_, stream_), "a graph's launch"); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t work_ = nullptr;
};

class CudaQueue final : public DeviceQueue {
 public:
  CudaQueue() : can_capture_(graphs_are_on()) {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
  }
  CudaQueue(const CudaQueue&) = delete;
  CudaQueue& operator=(const CudaQueue&) = delete;
  ~CudaQueue() override { cudaStreamDestroy(stream_); }

  void synchronize() override { check_cuda(cudaStreamSynchronize(stream_), "a kernel"); }
  std::unique_ptr<QueueEvent> record() override { return std::make_unique<CudaEvent>(stream_); }
  std::unique_ptr<QueueTime> record_time() override { return std::make_unique<CudaTime>(stream_); }
  void wait_for(QueueEvent& event) override {
    check_cuda(cudaStreamWaitEvent(stream_, static_cast<CudaEvent&>(event).native()), "an event");
  }
  [[nodiscard]] bool can_capture() const override { return can_capture_; }
  // Relaxed: the pool may ask the device for memory meanwhile.
  void begin_capture() override {
    check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "a capture");
  }
  std::unique_ptr<CapturedWork> end_capture() override {
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(stream_, &graph), "a capture");
    const std::unique_ptr<CUgraph_st, decltype(&cudaGraphDestroy)> owned(graph, &cudaGraphDestroy);
    return std::make_unique<CudaGraph>(graph, stream_);
  }
  void abandon_capture() override {
    cudaGraph_t graph = nullptr;  // none when a call in between was not allowed
    if (cudaStreamEndCapture(stream_, &graph) == cudaSuccess) cudaGraphDestroy(graph);
    static_cast<void>(cudaGetLastError());
  }
  [[nodiscard]] void* native() const override { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
  bool can_capture_;
};

// Memory of the current device, in managed and in plain blocks, and how much there is. Managed memory beyond that would
// move between host and device at every step instead of failing.
class DeviceMemory {
 public:
  /// Null when the device has not got as much. `allocate` is cudaMalloc or cudaMallocManaged.
  template <typename Allocate>
  std::byte* take(std::int64_t bytes, Allocate&& allocate) {
    if (limit_ == 0) {
      std::size_t total = 0;
      check_cuda(cudaMemGetInfo(&limit_, &total), "the device's memory");
      limit_ -= limit_ / kPartLeft;
    }
    const auto size = static_cast<std::size_t>(bytes);
    if (used_ + size > limit_) return nullptr;
    void* block = nullptr;
    const cudaError_t status = allocate(&block, size);
    if (status == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      return nullptr;  // the pool says what is in use
    }
    check_cuda(status, "memory");
    used_ += size;
    sizes_[block] = size;
    return static_cast<std::byte*>(block);
  }

  void give(std::byte* block) {
    used_ -= sizes_.at(block);
    sizes_.erase(block);
    cudaFree(block);
  }

 private:
  // Of what was free at first one part in so many is left to what takes memory later: kernels' code, libraries, NCCL.
  static constexpr std::size_t kPartLeft = 32;

  std::size_t limit_ = 0;
  std::size_t used_ = 0;
  std::map<void*, std::size_t> sizes_;
};

// The pool calls from one thread at a time. Never destroyed, as the pool.
DeviceMemory& device_memory() {
  static auto* const instance = new DeviceMemory;
  return *instance;
}

// Pages lie on the device unless the host touches them; they come back when a kernel does.
std::byte* allocate_managed(std::int64_t bytes) {
  return device_memory().take(bytes, [](void** block, std::size_t size) {
    const cudaError_t status = cudaMallocManaged(block, size);
    if (status != cudaSuccess) return status;
    cudaMemLocation here{};
    here.type = cudaMemLocationTypeDevice;
    check_cuda(cudaGetDevice(&here.id), "the current device");
    // Advice only: a device that does not take it works without.
    if (cudaMemAdvise(*block, size, cudaMemAdviseSetPreferredLocation, here) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
    }
    return cudaSuccess;
  });
}

std::byte* allocate_device(std::int64_t bytes) {
  return device_memory().take(
      bytes, [](void** block, std::size_t size) { return cudaMalloc(block, size); });
}

void release_device(std::byte* block) { device_memory().give(block); }

// Managed memory too: zeros of the host would be moved page by page.
void clear_device(std::byte* block, std::int64_t bytes) {
  check_cuda(cudaMemset(block, 0, static_cast<std::size_t>(bytes)), "zeroing memory");
  check_cuda(cudaStreamSynchronize(nullptr), "zeroing memory");
}

std::byte* allocate_pinned(std::int64_t bytes) {
  void* block = nullptr;
  const cudaError_t status = cudaMallocHost(&block, static_cast<std::size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  check_cuda(status, "pinned memory");
  return static_cast<std::byte*>(block);
}

void release_pinned(std::byte* block) { cudaFreeHost(block); }

}  // namespace

namespace {

// Once a program: such devices serve what is careful, such as tests that wait after each kernel.
void tell_exclusive_managed_memory(int device) {
  static std::once_flag told;
  int is_concurrent = 0;
  check_cuda(cudaDeviceGetAttribute(&is_concurrent, cudaDevAttrConcurrentManagedAccess, device),
             "managed memory");
  if (is_concurrent != 0) return;
  std::call_once(told, [] {
    log::warning(
        "managed_memory=exclusive: this machine lets the host touch managed memory only while no "
        "kernel runs; a segmentation fault may be due to that");
  });
}

}  // namespace

std::string device_problem(const DriverState& state, int index) {
  const auto version = [](int number) {
    return fmt::format("{}.{}", number / 1000, number % 1000 / 10);
  };
  if (state.driver == 0) return "this machine has no NVIDIA driver";
  // A driver serves every program of its major version.
  if (state.driver < state.runtime / 1000 * 1000 || state.status == cudaErrorInsufficientDriver) {
    return fmt::format("the NVIDIA driver serves CUDA {}; this program needs {} or later",
                       version(state.driver), version(state.runtime / 1000 * 1000));
  }
  if (state.status != cudaSuccess && state.status != cudaErrorNoDevice) {
    return fmt::format("the NVIDIA driver does not start: {} ({})",
                       cudaGetErrorString(state.status), cudaGetErrorName(state.status));
  }
  if (index >= state.num_devices) {
    return fmt::format("CUDA device {} was asked for; there are {} (CUDA_VISIBLE_DEVICES?)", index,
                       state.num_devices);
  }
  return {};
}

DriverState driver_state() {
  DriverState state;
  if (cudaDriverGetVersion(&state.driver) != cudaSuccess) state.driver = 0;
  state.status = cudaGetDeviceCount(&state.num_devices);
  if (state.status != cudaSuccess) state.num_devices = 0;
  static_cast<void>(cudaGetLastError());
  return state;
}

int num_devices() { return driver_state().num_devices; }

std::string problem() {
  const DriverState state = driver_state();
  const bool has_devices = state.driver != 0 && state.status != cudaErrorNoDevice;
  return has_devices ? device_problem(state, 0) : std::string();
}

Stream make_stream(int device) {
  // What is wrong with the switches is said now, not in the first step.
  static_cast<void>(attention_library());
  static_cast<void>(graphs_are_on());
  if (const std::string reason = device_problem(driver_state(), device); !reason.empty()) {
    fail(ExitCode::kUsage, "{}; --device cpu needs none", reason);
  }
  check_cuda(cudaSetDevice(device), "choosing a device");
  tell_exclusive_managed_memory(device);
  memory::set_block_sources({{&allocate_managed, &release_device, &clear_device},
                             {&allocate_device, &release_device, &clear_device},
                             {&allocate_pinned, &release_pinned}});
  return Stream(std::make_unique<CudaQueue>());
}

std::string device_id() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "asking for the device");
  std::array<char, 32> id{};
  check_cuda(cudaDeviceGetPCIBusId(id.data(), static_cast<int>(id.size()), device),
             "asking for the device's address");
  return id.data();
}

std::string versions() {
  int driver = 0;
  int runtime = 0;
  (void)cudaDriverGetVersion(&driver);  // 0 without a driver
  check_cuda(cudaRuntimeGetVersion(&runtime), "asking for the version");
  const auto name = [](int version) {
    return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
  };
  return fmt::format("CUDA driver {}, runtime {}, cuBLAS {}", driver == 0 ? "none" : name(driver),
                     name(runtime), cublasLtGetVersion());
}

}  // namespace ttt::kernels::cuda
