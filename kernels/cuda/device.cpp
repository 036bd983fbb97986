// Devices and streams of the CUDA runtime. Tensors lie in managed memory: host code that fills, reads or saves them
// needs no second path, and pages that kernels use stay on the device.

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>

#include "core/base/memory.h"
#include "kernels/cuda/attention_library.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace ttt::kernels::cuda {
namespace {

class CudaEvent final : public QueueEvent {
 public:
  explicit CudaEvent(cudaStream_t stream) {
    check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "an event");
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

class CudaQueue final : public DeviceQueue {
 public:
  CudaQueue() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
  }
  CudaQueue(const CudaQueue&) = delete;
  CudaQueue& operator=(const CudaQueue&) = delete;
  ~CudaQueue() override { cudaStreamDestroy(stream_); }

  void synchronize() override { check_cuda(cudaStreamSynchronize(stream_), "a kernel"); }
  std::unique_ptr<QueueEvent> record() override { return std::make_unique<CudaEvent>(stream_); }
  void wait_for(QueueEvent& event) override {
    check_cuda(cudaStreamWaitEvent(stream_, static_cast<CudaEvent&>(event).native()), "an event");
  }
  [[nodiscard]] void* native() const override { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

std::byte* allocate_managed(std::int64_t bytes) {
  void* block = nullptr;
  const cudaError_t status = cudaMallocManaged(&block, static_cast<std::size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) return nullptr;  // the pool says how much is in use
  check_cuda(status, "memory");
  return static_cast<std::byte*>(block);
}

void release_managed(std::byte* block) { cudaFree(block); }

// What stops a device from being used, in words; empty when nothing does.
std::string missing_device(int index) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return "this machine has no NVIDIA driver";
  }
  if (driver < CUDART_VERSION / 1000 * 1000) {
    return fmt::format("the NVIDIA driver serves CUDA {}.{}; this program needs {}.0 or later",
                       driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000);
  }
  const int count = num_devices();
  if (index >= count) {
    return fmt::format("CUDA device {} was asked for; there are {} (CUDA_VISIBLE_DEVICES?)", index,
                       count);
  }
  return {};
}

}  // namespace

int num_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

Stream make_stream(int device) {
  // What is wrong with TTT_ATTENTION is said now, not in the first step.
  static_cast<void>(attention_library());
  if (const std::string problem = missing_device(device); !problem.empty()) {
    fail(ExitCode::kUsage, "{}; --device cpu needs none", problem);
  }
  check_cuda(cudaSetDevice(device), "choosing a device");
  memory::set_block_source({&allocate_managed, &release_managed});
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
