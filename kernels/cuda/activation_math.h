#pragma once
// The elementary functions of kernels/activation_jets.h on a device.

#include "kernels/activation_jets.h"
#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda {

struct DeviceMath {
  __device__ __forceinline__ static float sigmoid(float x) { return 1.0F / (1.0F + expf(-x)); }
};

}  // namespace ttt::kernels::cuda
