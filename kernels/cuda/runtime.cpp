// What launch.h declares and only the CUDA runtime can do; the emulator of the tests has its own.

#include "kernels/cuda/launch.h"

namespace ttt::kernels::cuda {

ExitCode exit_code_of(cudaError_t status) {
  switch (status) {
    case cudaErrorMemoryAllocation:
      return ExitCode::kOutOfMemory;
    // The device or the way to it, not the program: another machine, or the same after a reset, goes on.
    case cudaErrorDevicesUnavailable:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorContained:
    case cudaErrorExternalDevice:
    case cudaErrorSystemNotReady:
    case cudaErrorMpsConnectionFailed:
    case cudaErrorMpsRpcFailure:
    case cudaErrorMpsServerNotReady:
    case cudaErrorNoDevice:  // once there was one: it fell off the bus
    case cudaErrorUnknown:
      return ExitCode::kPeerLost;
    case cudaErrorNoKernelImageForDevice:
      return ExitCode::kUsage;
    default:
      return ExitCode::kInternal;
  }
}

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // an error that is not sticky must not be reported twice
  const ExitCode code = exit_code_of(status);
  const char* const meaning =
      code == ExitCode::kPeerLost ? "the device is lost: "
      : code == ExitCode::kUsage
          ? "this program was built for other devices (CMAKE_CUDA_ARCHITECTURES): "
          : "";
  fail(code, "{}: {}{} ({})", what, meaning, cudaGetErrorString(status), cudaGetErrorName(status));
}

BlockLimits block_limits() {
  int device = 0;
  int shared_bytes = 0;
  int has_clusters = 0;
  check_cuda(cudaGetDevice(&device), "the current device");
  check_cuda(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "shared memory of a block");
  check_cuda(cudaDeviceGetAttribute(&has_clusters, cudaDevAttrClusterLaunch, device), "clusters");
  return {shared_bytes, has_clusters != 0};
}

}  // namespace ttt::kernels::cuda
