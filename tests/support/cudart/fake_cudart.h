#pragma once
// What kernels/cuda's host code asks the CUDA runtime, answered by a device that does nothing: its memory is the host's,
// its queues are always done, and it fails when a test says so. The program links the shared runtime, before which these
// functions are found; kernels cannot be launched.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ttt::test {

struct FakeDevice {
  std::int64_t free_bytes = 1 << 20;
  bool has_concurrent_managed_access = true;
  std::int64_t managed_bytes = 0, device_bytes = 0, pinned_bytes = 0;  // taken and not returned
  std::int64_t cleared_bytes = 0;                                      // by cudaMemset
  cudaError_t work = cudaSuccess;                                      // how what is queued ends
  cudaError_t allocation = cudaSuccess;                                // how every allocation ends
  cudaError_t last_error = cudaSuccess;
};

/// The one of this process.
FakeDevice& fake_device();

}  // namespace ttt::test
