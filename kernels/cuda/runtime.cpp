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
    default:
      return ExitCode::kInternal;
  }
}

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // an error that is not sticky must not be reported twice
  const ExitCode code = exit_code_of(status);
  fail(code, "{}: {}{} ({})", what, code == ExitCode::kPeerLost ? "the device is lost: " : "",
       cudaGetErrorString(status), cudaGetErrorName(status));
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

}  // namespace ttt::kernels::cuda
