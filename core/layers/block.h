#pragma once
// A residual block of either backbone.
//
//   h = h + conv(RMSNorm(h))       with pre_conv (Mamba backbone)
//   h = h + mixer(RMSNorm(h))
//   h = h + SwiGLU(RMSNorm(h))
//
// Source: arXiv:2407.04620 figure 13.

#include "core/layers/pre_conv.h"
#include "core/layers/rms_norm.h"
#include "core/layers/swiglu.h"
#include "core/mixers/qkv_mixer.h"

namespace ttt {

class Block {
 public:
  /// Registers its parameters under `prefix` ("model.layers.3").
  Block(ParameterStore& store, const std::string& prefix, const config::ModelConfig& config,
        std::int64_t context_length, std::int64_t index);

  /// As those of a Layer; x and y [B, T, C] are the residual stream before and after.
  [[nodiscard]] std::unique_ptr<Saved> forward(TensorView x, TensorView y, Context& context) const;
  void backward(const Saved& saved, TensorView x, TensorView d_y, TensorView d_x,
                Context& context) const;
  [[nodiscard]] std::unique_ptr<DecodeState> make_decode_state(std::int64_t batch,
                                                               Context& context) const;
  void extend(TensorView x, TensorView y, DecodeState& state, Context& context) const;

  [[nodiscard]] const QkvMixer& mixer() const { return mixer_; }

 private:
  const ParameterStore& store_;
  std::unique_ptr<PreConv> pre_conv_;
  QkvMixer mixer_;
  SwiGlu ffn_;
  RmsNorm seq_norm_, ffn_norm_;
};

}  // namespace ttt
