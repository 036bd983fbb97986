// What users are told about devices that cannot be used and errors of the runtime: needs the CUDA toolkit, no device.

#include "kernels/cuda/device.h"

#include <gtest/gtest.h>

#include "kernels/cuda/attention_library.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "tests/support/tensors.h"

namespace ttt::kernels::cuda {

const AttentionLibrary* attention_library() { return nullptr; }

namespace {

using test::error_of;

TEST(CudaDeviceState, WorksWithADriverOfTheSameMajorVersion) {
  EXPECT_EQ(device_problem({13000, 13000, cudaSuccess, 2}, 1), "");
  EXPECT_EQ(device_problem({13000, 13020, cudaSuccess, 2}, 0), "");
  EXPECT_EQ(device_problem({14010, 13000, cudaSuccess, 1}, 0), "");
}

TEST(CudaDeviceState, NamesWhatIsMissing) {
  EXPECT_EQ(device_problem({0, 13000, cudaErrorInsufficientDriver, 0}, 0),
            "this machine has no NVIDIA driver");
  EXPECT_EQ(device_problem({12040, 13000, cudaErrorInsufficientDriver, 0}, 0),
            "the NVIDIA driver serves CUDA 12.4; this program needs 13.0 or later");
  EXPECT_EQ(device_problem({12090, 13000, cudaSuccess, 8}, 0),
            "the NVIDIA driver serves CUDA 12.9; this program needs 13.0 or later");
  EXPECT_EQ(device_problem({13000, 13000, cudaErrorNoDevice, 0}, 0),
            "CUDA device 0 was asked for; there are 0 (CUDA_VISIBLE_DEVICES?)");
  EXPECT_EQ(device_problem({13000, 13000, cudaSuccess, 2}, 2),
            "CUDA device 2 was asked for; there are 2 (CUDA_VISIBLE_DEVICES?)");
  EXPECT_EQ(device_problem({13000, 13000, cudaErrorSystemDriverMismatch, 0}, 0),
            "the NVIDIA driver does not start: system has unsupported display driver / cuda driver "
            "combination (cudaErrorSystemDriverMismatch)");
}

// Whatever machine this is: either a device can be used, or the reason is said and the CPU proposed.
TEST(CudaDeviceState, OfThisMachine) {
  const std::string reason = device_problem(driver_state(), 0);
  EXPECT_EQ(reason.empty(), num_devices() > 0);
  if (reason.empty()) return;
  ExitCode code = ExitCode::kOk;
  EXPECT_EQ(error_of([] { (void)make_stream(0); }, &code), reason + "; --device cpu needs none");
  EXPECT_EQ(code, ExitCode::kUsage);
}

TEST(CudaDeviceState, TheSwitchOfGraphsIsOnOrOff) {
  setenv("TTT_GRAPHS", "maybe", 1);
  ExitCode code = ExitCode::kOk;
  EXPECT_EQ(error_of([] { (void)make_stream(0); }, &code), "TTT_GRAPHS=maybe: must be on or off");
  EXPECT_EQ(code, ExitCode::kUsage);
  unsetenv("TTT_GRAPHS");
}

TEST(CudaErrors, ALostDeviceIsAPeerLost) {
  for (const cudaError_t status :
       {cudaErrorECCUncorrectable, cudaErrorNvlinkUncorrectable, cudaErrorDevicesUnavailable,
        cudaErrorNoDevice, cudaErrorUnknown, cudaErrorContained, cudaErrorHardwareStackError}) {
    ExitCode code = ExitCode::kOk;
    const std::string error = error_of([&] { check_cuda(status, "a kernel"); }, &code);
    EXPECT_EQ(code, ExitCode::kPeerLost) << error;
    EXPECT_EQ(error.find("a kernel: the device is lost: "), 0U) << error;
  }
}

TEST(CudaErrors, KernelsForOtherDevicesAreTheBuilders) {
  ExitCode code = ExitCode::kOk;
  EXPECT_EQ(
      error_of([] { check_cuda(cudaErrorNoKernelImageForDevice, "a launch"); }, &code),
      "a launch: this program was built for other devices (CMAKE_CUDA_ARCHITECTURES): no kernel "
      "image is available for execution on the device (cudaErrorNoKernelImageForDevice)");
  EXPECT_EQ(code, ExitCode::kUsage);
}

TEST(CudaErrors, OthersAreOurs) {
  const std::pair<cudaError_t, ExitCode> cases[] = {
      {cudaErrorMemoryAllocation, ExitCode::kOutOfMemory},
      {cudaErrorIllegalAddress, ExitCode::kInternal},
      {cudaErrorLaunchFailure, ExitCode::kInternal},
      {cudaErrorMisalignedAddress, ExitCode::kInternal},
      {cudaErrorInvalidValue, ExitCode::kInternal}};
  for (const auto& [status, expected] : cases) {
    ExitCode code = ExitCode::kOk;
    const std::string error = error_of([s = status] { check_cuda(s, "a kernel"); }, &code);
    EXPECT_EQ(code, expected) << error;
    EXPECT_NE(error.find(cudaGetErrorName(status)), std::string::npos) << error;
  }
  EXPECT_EQ(error_of([] { check_cuda(cudaSuccess, "a kernel"); }), "");
}

}  // namespace
}  // namespace ttt::kernels::cuda
