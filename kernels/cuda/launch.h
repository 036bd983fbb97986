#pragma once
// Starting a kernel on a stream.

#include <cstddef>

#include "core/base/error.h"
#include "core/base/stream.h"
#include "kernels/cuda/block_limits.h"

#ifndef TTT_SIMT_EMULATOR
#include <cuda_runtime.h>

namespace ttt::kernels::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes = 0;  // dynamic
  unsigned cluster = 1;          // blocks of a cluster, along x
};

/// kOutOfMemory, kPeerLost (the device is lost), kUsage (no code for this device) or kInternal.
ExitCode exit_code_of(cudaError_t status);
/// Throws it with CUDA's reason.
void check_cuda(cudaError_t status, const char* what);

/// Of the current device.
BlockLimits block_limits();

/// Queues `kernel`; errors of the launch itself are thrown, those of its run by Stream::synchronize.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream& stream,
            Arguments... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  constexpr std::size_t kAlwaysAllowed = std::size_t{48} << 10;
  if (shape.shared_bytes > kAlwaysAllowed) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shape.shared_bytes)),
               "the kernel's shared memory");
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {shape.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream.native());
  config.attrs = &cluster;
  config.numAttrs = shape.cluster > 1 ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...),
             "a kernel's launch");
}

}  // namespace ttt::kernels::cuda
#endif
