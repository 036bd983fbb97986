#include "dist/nccl_device.h"

#include <cuda_runtime_api.h>

#include <array>

#include "core/base/error.h"

namespace ttt::dist {

std::string current_device_bus() {
  int device = 0;
  std::array<char, 32> bus{};
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), device);
  }
  if (status != cudaSuccess) {
    fail(ExitCode::kInternal, "the device's bus: {}", cudaGetErrorString(status));
  }
  return bus.data();
}

}  // namespace ttt::dist
