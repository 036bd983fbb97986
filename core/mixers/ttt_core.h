#pragma once
// TTT-Linear and TTT-MLP as a SequenceCore: inner learning rate, token scale and initial state
// around the inner loop (kernels/ttt.h).
//
//   q, k rotated by RoPE (interleaved pairs) at position t mod K
//   l_t = base / F * multiplier * sigmoid(x_t . w_h + a_h)   [LEARNED], or base * multiplier [CONSTANT]
//   c_i = max(0, 1/i + learned_i)  [INVERSE_PLUS_LEARNED], 1/i [INVERSE], 1 [ONE]
//
// Dims: B batch, T tokens, H heads, F head dim, K mini-batch size, D = expansion F hidden width of TTT-MLP.
// Numerics: everything in the element type, F32 or F64; nothing is rounded to bf16 here.
// Errors: kInternal when shapes do not fit, or when more tokens come than one whole-sequence mini-batch has.
// Source: arXiv:2407.04620 sections 2.4-2.7, table 1 (ablation switches); ttt-lm-pytorch (parameter names).

#include "configs/run.pb.h"
#include "core/layers/linear.h"
#include "core/mixers/sequence_core.h"
#include "kernels/ttt.h"

namespace ttt {

class TttCore final : public SequenceCore {
 public:
  TttCore(ParameterStore& store, const std::string& prefix, const config::ModelConfig& config,
          std::int64_t context_length, std::int64_t layer);

  [[nodiscard]] std::optional<kernels::RopeOptions> rope() const override;
  std::unique_ptr<Saved> forward(const CoreInputs& inputs, TensorView out,
                                 Context& context) const override;
  void backward(const Saved& saved, const CoreInputs& inputs, TensorView out, TensorView d_out,
                const CoreGradients& gradients, Context& context) const override;
  [[nodiscard]] std::unique_ptr<DecodeState> make_decode_state(std::int64_t batch,
                                                               Context& context) const override;
  void extend(const CoreInputs& inputs, TensorView out, DecodeState& state,
              Context& context) const override;
  [[nodiscard]] std::optional<std::int64_t> decode_period() const override {
    return options_.mini_batch_size;
  }
  [[nodiscard]] double flops_per_token(std::int64_t context_length) const override;

  /// Uninitialised fast weights; absent ones are empty.
  struct State {
    Tensor all;  // the weights one behind the other: one message between ranks
    kernels::TttState views;
  };
  [[nodiscard]] State make_state(std::int64_t batch, std::int64_t heads) const;
  /// The fast weights after the last token of the forward that made `saved`.
  [[nodiscard]] static const State& final_state(const Saved& saved);

 private:
  struct RowGroup;
  struct Prepared;
  std::unique_ptr<Prepared> prepare(const CoreInputs& inputs, std::int64_t first_position,
                                    Context& context) const;
  [[nodiscard]] kernels::TttInputs kernel_inputs(const CoreInputs& inputs, const Prepared& p,
                                                 Context& context) const;
  void record_inner_losses(const kernels::TttInputs& kernel, const Prepared& p,
                           Context& context) const;
  /// The learned one, of this rank's heads.
  [[nodiscard]] State initial_state(std::int64_t batch, std::int64_t heads, Context& context) const;
  [[nodiscard]] double rate_scale(const Context& context) const;

  ParameterStore& store_;
  config::TttConfig config_;
  kernels::TttOptions options_;
  std::int64_t num_heads_, head_dim_, layer_;
  double rope_theta_;
  std::unique_ptr<Linear> rate_;  // LEARNED
  const Parameter* rate_bias_ = nullptr;
  const Parameter* token_offset_ = nullptr;  // INVERSE_PLUS_LEARNED
  const Parameter* norm_weight_ = nullptr;   // inner_norm
  const Parameter* norm_bias_ = nullptr;
  // The learned initial state, absent where it is zero or has no bias.
  const Parameter* w1_ = nullptr;
  const Parameter* b1_ = nullptr;
  const Parameter* w2_ = nullptr;
  const Parameter* b2_ = nullptr;
};

}  // namespace ttt
