#pragma once
// Linear attention as a SequenceCore: the first rows of the TTT ablation ladder (kernels/linear_attention.h).
//
//   out_t = sum_{s<=t} (phi(q_t) . phi(k_s)) v_s, optionally divided by its normaliser; no RoPE, no decay
//
// Dims: B batch, T tokens, H heads, F head dim.
// Numerics: F32 and F64.
// Errors: kInternal when shapes do not fit.
// Source: arXiv:2006.16236; arXiv:2407.04620 table 1.

#include "configs/run.pb.h"
#include "core/mixers/sequence_core.h"
#include "core/parameters.h"
#include "kernels/linear_attention.h"

namespace ttt {

class LinearAttentionCore final : public SequenceCore {
 public:
  LinearAttentionCore(const ParameterStore& store, const config::ModelConfig& config);

  [[nodiscard]] std::optional<kernels::RopeOptions> rope() const override { return std::nullopt; }
  std::unique_ptr<Saved> forward(const CoreInputs& inputs, TensorView out,
                                 Context& context) const override;
  void backward(const Saved& saved, const CoreInputs& inputs, TensorView out, TensorView d_out,
                const CoreGradients& gradients, Context& context) const override;
  [[nodiscard]] std::unique_ptr<DecodeState> make_decode_state(std::int64_t batch,
                                                               Context& context) const override;
  void extend(const CoreInputs& inputs, TensorView out, DecodeState& state,
              Context& context) const override;
  [[nodiscard]] std::optional<std::int64_t> decode_period() const override { return 1; }
  [[nodiscard]] double flops_per_token(std::int64_t context_length) const override;

 private:
  const ParameterStore& store_;
  std::int64_t num_heads_, head_dim_;
  kernels::LinearAttentionOptions options_;
};

}  // namespace ttt
