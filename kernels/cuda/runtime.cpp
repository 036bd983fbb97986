// What launch.h declares and only the CUDA runtime can do; the emulator of the tests has its own.

#include "kernels/cuda/launch.h"

namespace ttt::kernels::cuda {

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // an error that is not sticky must not be reported twice
  const char* const reason = cudaGetErrorString(status);
  switch (status) {
    case cudaErrorMemoryAllocation:
      fail(ExitCode::kOutOfMemory, "{}: {}", what, reason);
    case cudaErrorDevicesUnavailable:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
      fail(ExitCode::kPeerLost, "{}: the device is lost: {}", what, reason);
    default:
      fail(ExitCode::kInternal, "{}: {} ({})", what, reason, cudaGetErrorName(status));
  }
}

int compute_capability() {
  int device = 0;
  int major = 0;
  int minor = 0;
  check_cuda(cudaGetDevice(&device), "the current device");
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
             "the compute capability");
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
             "the compute capability");
  return 10 * major + minor;
}

void copy_to_host(void* host, const void* device, std::size_t bytes, Stream& stream) {
  check_cuda(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost,
                             static_cast<cudaStream_t>(stream.native())),
             "a copy to the host");
  stream.synchronize();
}

}  // namespace ttt::kernels::cuda
