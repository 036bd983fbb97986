#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

const DeviceOps* cuda_ops = nullptr;

}  // namespace

const DeviceOps* device_ops(const Stream& stream) {
  if (stream.device() == Device::kCpu) return nullptr;
  if (cuda_ops == nullptr) fail(ExitCode::kUsage, "this program was built without CUDA");
  return cuda_ops;
}

void set_cuda_ops(const DeviceOps& ops) { cuda_ops = &ops; }

}  // namespace ttt::kernels
