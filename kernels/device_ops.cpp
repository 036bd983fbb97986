#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

CudaBackend cuda_backend;

}  // namespace

const DeviceOps* device_ops(const Stream& stream) {
  if (stream.device() == Device::kCpu) return nullptr;
  return cuda_backend.ops;
}

void set_cuda_backend(const CudaBackend& backend) { cuda_backend = backend; }

int num_cuda_devices() { return cuda_backend.ops == nullptr ? 0 : cuda_backend.num_devices(); }

std::string cuda_problem() {
  return cuda_backend.ops == nullptr ? std::string() : cuda_backend.problem();
}

Stream make_stream(Device device, int index) {
  if (device == Device::kCpu) return {};
  if (cuda_backend.ops == nullptr) {
    fail(ExitCode::kUsage, "this program was built without CUDA: --device cpu is what it has");
  }
  return cuda_backend.make_stream(index);
}

}  // namespace ttt::kernels
