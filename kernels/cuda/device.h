#pragma once
// What stops a CUDA device from being used.

#include <cuda_runtime.h>

#include <string>

namespace ttt::kernels::cuda {

struct DriverState {
  int driver = 0;  // the newest CUDA that it serves, 13020 for 13.2; 0 without a driver
  int runtime = CUDART_VERSION;  // that of this program
  cudaError_t status = cudaSuccess;
  int num_devices = 0;
};

/// Of this machine.
DriverState driver_state();

/// Why device `index` cannot be used, in words; empty when it can.
std::string device_problem(const DriverState& state, int index);

}  // namespace ttt::kernels::cuda
