#include "kernels/device_ops.h"

#include "kernels/planning.h"

namespace ttt::kernels {
namespace {

CudaBackend cuda_backend;

}  // namespace

const DeviceOps* device_ops(const Stream& stream) {
  if (stream.is_planning()) return &planning_ops();
  if (stream.device() == Device::kCpu) return nullptr;
  return cuda_backend.ops;
}

void set_cuda_backend(const CudaBackend& backend) { cuda_backend = backend; }

int num_cuda_devices() { return cuda_backend.ops == nullptr ? 0 : cuda_backend.num_devices(); }

std::string cuda_problem() {
  return cuda_backend.ops == nullptr ? std::string() : cuda_backend.problem();
}

std::string device_id(const Stream& stream) {
  return stream.device() == Device::kCpu ? std::string() : cuda_backend.device_id();
}

std::string cuda_versions() {
  return cuda_backend.ops == nullptr ? std::string() : cuda_backend.versions();
}

Stream make_stream(Device device, int index) {
  if (device == Device::kCpu) return {};
  if (cuda_backend.ops == nullptr) {
    fail(ExitCode::kUsage, "this program was built without CUDA: --device cpu is what it has");
  }
  return cuda_backend.make_stream(index);
}

}  // namespace ttt::kernels
