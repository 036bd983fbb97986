#pragma once
// How an op reaches its CUDA implementation: the function that kernels/<op>.h declares checks shapes, then asks
// `device_ops(stream)`; null means the CPU, which is the rest of that function, and else it returns what the table's
// entry of its name returns.
//
// Dims: none.
// Numerics: on a CUDA device activations are F32 or BF16 with arithmetic and statistics in fp32; parameters, their
//   gradients and statistics are F32. Sums have a fixed order: no atomics on floating-point numbers.
// Errors: kUsage when the program has no CUDA backend.
// Source: none. A table filled at start, so that a program without CUDA links none of it and the tests can fill it
//   with the same kernels on an emulator.

#include <string>

#include "kernels/activation.h"
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/causal_conv.h"
#include "kernels/copy.h"
#include "kernels/embedding.h"
#include "kernels/head_cross_entropy.h"
#include "kernels/inner_learning_rate.h"
#include "kernels/linear_attention.h"
#include "kernels/matmul.h"
#include "kernels/non_finite.h"
#include "kernels/norm.h"
#include "kernels/norm_conv.h"
#include "kernels/random.h"
#include "kernels/rope.h"
#include "kernels/row_losses.h"
#include "kernels/shared_qk.h"
#include "kernels/ttt.h"

// Every op, by its name in namespace ttt::kernels; its CUDA implementation has the same name and signature in
// ttt::kernels::cuda.
// clang-format off
#define TTT_DEVICE_OPS(X) \
  X(swiglu_forward) \
  X(swiglu_backward) \
  X(add) \
  X(decide_update) \
  X(adamw) \
  X(block_sums_of_squares) \
  X(add_up) \
  X(find_non_finite) \
  X(smallest) \
  X(attention_forward) \
  X(attention_backward) \
  X(causal_conv_forward) \
  X(causal_conv_backward) \
  X(copy) \
  X(copy_columns) \
  X(fill) \
  X(embedding_forward) \
  X(embedding_backward) \
  X(head_cross_entropy) \
  X(inner_learning_rate_forward) \
  X(inner_learning_rate_backward) \
  X(token_scale_forward) \
  X(token_scale_backward) \
  X(linear_attention_forward) \
  X(linear_attention_backward) \
  X(linear_forward) \
  X(linear_backward_input) \
  X(linear_backward_weight) \
  X(rms_norm_forward) \
  X(rms_norm_backward) \
  X(layer_norm_forward) \
  X(layer_norm_backward) \
  X(norm_conv_forward) \
  X(norm_conv_backward) \
  X(random_normal) \
  X(random_truncated_normal) \
  X(rope_forward) \
  X(rope_backward) \
  X(row_losses) \
  X(shared_qk_forward) \
  X(shared_qk_backward) \
  X(ttt_forward) \
  X(ttt_backward) \
  X(ttt_step) \
  X(ttt_inner_loss)
// clang-format on

namespace ttt::kernels {

struct DeviceOps {
#define TTT_MEMBER(op) decltype(&kernels::op) op = nullptr;  // NOLINT: a member's name
  TTT_DEVICE_OPS(TTT_MEMBER)
#undef TTT_MEMBER
};

/// The ops of the stream's device; null for the CPU. A planning stream's are those of kernels/planning.h.
const DeviceOps* device_ops(const Stream& stream);

/// A CUDA backend: its ops, its devices and how streams on them are made.
struct CudaBackend {
  const DeviceOps* ops = nullptr;
  int (*num_devices)() = nullptr;      // 0 where none can be used
  std::string (*problem)() = nullptr;  // why none can be, where there is a driver; else empty
  Stream (*make_stream)(int device) = nullptr;
  std::string (*device_id)() = nullptr;  // of the device that this process computes on
  std::string (*versions)() = nullptr;   // of the driver and the libraries
};
/// Called once, before the first stream on a CUDA device is made.
void set_cuda_backend(const CudaBackend& backend);

/// 0 in a program without CUDA and on a machine without a device.
int num_cuda_devices();
/// What tells the device of `stream` from the others of the machine (its PCI address), whatever number it has in this
/// process; "" for the CPU.
std::string device_id(const Stream& stream);
/// Versions of the CUDA driver, runtime and cuBLAS; "" in a program without CUDA.
std::string cuda_versions();
/// Why the devices of this machine cannot be used: a driver that is too old, say. Empty where there are none.
std::string cuda_problem();
/// A queue on `device`; of CUDA devices number `index` of this process.
Stream make_stream(Device device, int index);

}  // namespace ttt::kernels
