#pragma once
// Softmax self-attention as a SequenceCore (kernels/attention.h).
//
//   q, k rotated by RoPE at position t;  out_i = softmax_j<=i(q_i . k_j / sqrt(F)) v_j
//
// Dims: B batch, T tokens, H query heads, G key heads, F head dim.
// Numerics: F32 and F64; softmax statistics in fp32 or wider.
// Errors: kInternal when shapes do not fit.
// Source: arXiv:2302.13971 (Llama), arXiv:2305.13245 (grouped queries).

#include "configs/run.pb.h"
#include "core/mixers/sequence_core.h"
#include "core/parameters.h"

namespace ttt {

class AttentionCore final : public SequenceCore {
 public:
  AttentionCore(const ParameterStore& store, const config::ModelConfig& config);

  [[nodiscard]] std::optional<kernels::RopeOptions> rope() const override { return rope_; }
  std::unique_ptr<Saved> forward(const CoreInputs& inputs, TensorView out,
                                 Context& context) const override;
  void backward(const Saved& saved, const CoreInputs& inputs, TensorView out, TensorView d_out,
                const CoreGradients& gradients, Context& context) const override;
  /// Keys and values of all tokens so far: this state grows with the sequence.
  [[nodiscard]] std::unique_ptr<DecodeState> make_decode_state(std::int64_t batch,
                                                               Context& context) const override;
  void extend(const CoreInputs& inputs, TensorView out, DecodeState& state,
              Context& context) const override;
  [[nodiscard]] std::optional<std::int64_t> decode_period() const override { return std::nullopt; }
  [[nodiscard]] double flops_per_token(std::int64_t context_length) const override;

 private:
  const ParameterStore& store_;
  std::int64_t num_heads_, num_kv_heads_, head_dim_;
  kernels::RopeOptions rope_;
  double scale_;
};

}  // namespace ttt
