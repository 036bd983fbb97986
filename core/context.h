#pragma once
// What every layer is told besides its input. Passed down; there are no globals.

#include <cstdint>

#include "core/base/stream.h"
#include "core/base/tensor.h"
#include "kernels/matmul.h"

namespace ttt {

class SequenceExchange;

/// Receives the inner losses of TTT layers when evaluation asks for them (kernels/ttt.h, ttt_inner_loss).
class InnerLossRecorder {
 public:
  virtual ~InnerLossRecorder() = default;
  /// `losses` is [3, B, T, H] F64 and valid during the call only. Where sequences are split, T are the
  /// tokens of this rank's segment.
  virtual void record(std::int64_t layer, TensorView losses) = 0;
};

/// Told how far a pass over the model has come, in elements of the flat buffers, whose order is that of forward
/// (core/parameters.h).
class PassObserver {
 public:
  PassObserver() = default;
  PassObserver(const PassObserver&) = delete;
  PassObserver& operator=(const PassObserver&) = delete;
  virtual ~PassObserver() = default;
  /// Forward reads parameters of elements [0, end) from here on.
  virtual void before_reading(std::int64_t end, Stream& stream) = 0;
  /// This pass adds nothing more to gradients of elements from `begin` on.
  virtual void after_gradients(std::int64_t begin, Stream& stream) = 0;
};

struct Context {
  Stream& stream;
  kernels::Precision precision = kernels::Precision::kNative;

  /// The element type of activations in a model whose parameters are `parameters`. The CPU keeps them in fp32 beside
  /// bf16 products, since nothing there is faster in bf16; on CUDA memory traffic is what counts.
  [[nodiscard]] DType activation_type(DType parameters) const {
    const bool is_bf16 = stream.device() == Device::kCuda && precision == kernels::Precision::kBF16;
    return is_bf16 ? DType::kBF16 : parameters;
  }
  /// Multiplies the inner learning rate of every TTT layer (warm-up of TTT-MLP); 1 in evaluation.
  double inner_lr_multiplier = 1.0;
  InnerLossRecorder* inner_losses = nullptr;
  /// The ranks that hold the other segments of these sequences (core/sequence_exchange.h); null: they are whole.
  SequenceExchange* sequence = nullptr;
  PassObserver* observer = nullptr;  // of forward_backward
};

}  // namespace ttt
