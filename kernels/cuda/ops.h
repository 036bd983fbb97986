#pragma once
// The CUDA implementations of the ops of kernels/*.h: same names and signatures, in this namespace. Shapes have been
// checked when one is called.

#include "kernels/device_ops.h"

namespace ttt::kernels::cuda {

/// What cuBLASLt is given to work in, once a process.
constexpr std::int64_t kProductWorkspaceBytes = std::int64_t{64} << 20;

#define TTT_DECLARE(op) decltype(kernels::op) op;  // NOLINT: a function's name
TTT_DEVICE_OPS(TTT_DECLARE)
#undef TTT_DECLARE

/// All of them.
const DeviceOps& all_ops();

/// 0 where there is no driver or no device.
int num_devices();
/// Why there are none although there is a driver; else empty.
std::string problem();
/// A queue on CUDA device `device` of this process.
Stream make_stream(int device);

/// The PCI address of the device that was chosen last.
std::string device_id();

/// Of the driver, the runtime and cuBLAS.
std::string versions();

/// All of this, for set_cuda_backend.
CudaBackend backend();

}  // namespace ttt::kernels::cuda
