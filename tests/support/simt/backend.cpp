// What of the CUDA backend is not kernels: on the emulator products are the CPU's.

#include "core/base/memory.h"
#include "kernels/cuda/attention_library.h"
#include "kernels/cuda/ops.h"
#include "tests/support/simt/device_memory.h"
#include "tests/support/simt/queue.h"

namespace ttt::kernels::cuda {
namespace {

bool is_mixed(TensorView a, TensorView b, TensorView c) {
  return a.dtype() != DType::kF32 || b.dtype() != DType::kF32 || c.dtype() != DType::kF32;
}

void multiply(TensorView x, TensorView w, TensorView residual, TensorView y, Precision precision) {
  const simt::DeviceAccess access;
  const memory::Scope scope(memory::Purpose{});
  Stream cpu;
  if (!is_mixed(x, w, y)) return kernels::linear_forward(x, w, residual, y, precision, cpu);
  const Tensor wide_residual = residual.empty() ? Tensor() : to_dtype(residual, DType::kF32);
  const Tensor wide_y(y.shape(), DType::kF32);
  kernels::linear_forward(to_dtype(x, DType::kF32), to_dtype(w, DType::kF32), wide_residual, wide_y,
                          precision, cpu);
  copy(wide_y, y);
}

void multiply_back(TensorView d_y, TensorView w, TensorView d_x, Accumulate accumulate,
                   Precision precision) {
  const simt::DeviceAccess access;
  const memory::Scope scope(memory::Purpose{});
  Stream cpu;
  if (!is_mixed(d_y, w, d_x)) {
    return kernels::linear_backward_input(d_y, w, d_x, accumulate, precision, cpu);
  }
  const Tensor wide_d_x = to_dtype(d_x, DType::kF32);
  kernels::linear_backward_input(to_dtype(d_y, DType::kF32), to_dtype(w, DType::kF32), wide_d_x,
                                 accumulate, precision, cpu);
  copy(wide_d_x, d_x);
}

void multiply_for_weight(TensorView d_y, TensorView x, TensorView d_w, Precision precision) {
  const simt::DeviceAccess access;
  const memory::Scope scope(memory::Purpose{});
  Stream cpu;
  if (!is_mixed(d_y, x, d_w)) {
    return kernels::linear_backward_weight(d_y, x, d_w, precision, cpu);
  }
  kernels::linear_backward_weight(to_dtype(d_y, DType::kF32), to_dtype(x, DType::kF32), d_w,
                                  precision, cpu);
}

}  // namespace

int num_devices() { return 1; }

std::string problem() { return {}; }

const AttentionLibrary* attention_library() { return nullptr; }

Stream make_stream(int /*device*/) {
  memory::set_block_sources({{},
                             {&simt::allocate_device, &simt::release_device, &simt::clear_device},
                             {&simt::allocate_pinned, &simt::release_pinned}});
  return Stream(std::make_unique<simt::EmulatedQueue>());
}

std::string device_id() { return "emulated"; }
std::string versions() { return "emulated"; }

void linear_forward(TensorView x, TensorView w, TensorView residual, TensorView y,
                    Precision precision, Stream& stream) {
  simt::submit(stream, [=] { multiply(x, w, residual, y, precision); });
}

void linear_backward_input(TensorView d_y, TensorView w, TensorView d_x, Accumulate accumulate,
                           Precision precision, Stream& stream) {
  simt::submit(stream, [=] { multiply_back(d_y, w, d_x, accumulate, precision); });
}

void linear_backward_weight(TensorView d_y, TensorView x, TensorView d_w, Precision precision,
                            Stream& stream) {
  simt::submit(stream, [=] { multiply_for_weight(d_y, x, d_w, precision); });
}

}  // namespace ttt::kernels::cuda
