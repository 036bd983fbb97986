#include "kernels/cuda/ops.h"

namespace ttt::kernels::cuda {

const DeviceOps& all_ops() {
#define TTT_ADDRESS(op) &cuda::op,
  static const DeviceOps ops{TTT_DEVICE_OPS(TTT_ADDRESS)};
#undef TTT_ADDRESS
  return ops;
}

CudaBackend backend() {
  return {&all_ops(), &num_devices, &problem, &make_stream, &device_id, &versions};
}

}  // namespace ttt::kernels::cuda
