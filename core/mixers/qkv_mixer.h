#pragma once
// Projections, output norm, gate and output projection around a SequenceCore.
//
//   q = x Wq^T, k = x Wk^T             or, with share_qk: p = x Wq^T, q = conv_q(p), k = conv_k(p)
//   q = rope(q), k = rope(k)           if the core wants them so
//   v = x Wv^T
//   y = core(q, k, v; x)
//   y = LayerNorm(y)                   with post_norm
//   y = gelu_tanh(x Wg^T) * y          with use_gate, which has post_norm
//                                      (all the products with x are one; core/layers/projections.h)
//   out = y Wo^T                       + residual
//
// With head exchange p (or q and k), v and y pass to the ranks of their heads and back, around conv and core.
//
// Dims: B batch, T tokens, C model dim, H heads, G key heads, F = C / H.
// Numerics: GEMMs as Context::precision says; norms and gates in the element type. LayerNorm epsilon 1e-6.
// Errors: kInternal when shapes do not fit.
// Source: arXiv:2407.04620 figure 13; ttt-lm-pytorch. With cores other than TTT, share_qk, use_gate and
//   post_norm are our extension (the paper's Mamba backbone has TTT cores only).

#include "configs/run.pb.h"
#include "core/layers/linear.h"
#include "core/layers/projections.h"
#include "core/layers/shared_qk.h"
#include "core/mixers/sequence_core.h"

namespace ttt {

class QkvMixer final : public Layer {
 public:
  /// Registers its parameters under `prefix` and builds the core the configuration names.
  /// `context_length` matters where a mini-batch is the whole sequence; `layer` labels inner losses.
  QkvMixer(ParameterStore& store, const std::string& prefix, const config::ModelConfig& config,
           std::int64_t context_length, std::int64_t layer);

  using Layer::forward;
  std::unique_ptr<Saved> forward(TensorView x, TensorView residual, TensorView y,
                                 Context& context) const override;
  void backward(const Saved& saved, TensorView x, TensorView d_y, TensorView d_x,
                Context& context) const override;
  [[nodiscard]] std::unique_ptr<DecodeState> make_decode_state(std::int64_t batch,
                                                               Context& context) const override;
  void extend(TensorView x, TensorView residual, TensorView y, DecodeState& state,
              Context& context) const override;

  [[nodiscard]] const SequenceCore& core() const { return *core_; }
  /// What the core saved in the forward that made `saved`.
  [[nodiscard]] static const Saved& core_saved(const Saved& saved);

 private:
  struct Activations;
  /// Of x, those of one shape beside each other. Without a gate there is no kGate, with share_qk no kK.
  enum Projection : std::size_t { kQ, kGate, kK, kV };
  /// `decoding`: the tokens go on from there.
  void project(TensorView x, Activations& a, DecodeState* decoding, Context& context) const;
  void finish(TensorView x, Activations& a, TensorView residual, TensorView y,
              Context& context) const;
  /// Adds to d_x and to the weight's grad what comes from the gradient of the heads' side.
  void add_gradients(Projection i, TensorView x, const Tensor& d_heads, TensorView d_x,
                     Context& context) const;
  void backward_qk(const Activations& a, TensorView x, const Tensor& d_q, const Tensor& d_k,
                   TensorView d_x, Context& context) const;
  /// [B, T, H F] as [B, T, H, F].
  [[nodiscard]] TensorView split_heads(TensorView view) const;
  [[nodiscard]] CoreInputs core_inputs(TensorView x, const Activations& a) const;
  ParameterStore& store_;
  std::int64_t head_dim_;
  std::unique_ptr<Projections> projections_;
  bool has_gate_;
  std::unique_ptr<SharedQk> shared_qk_;          // with share_qk
  const Parameter* post_norm_weight_ = nullptr;  // with post_norm
  const Parameter* post_norm_bias_ = nullptr;
  std::unique_ptr<SequenceCore> core_;
  std::unique_ptr<Linear> o_proj_;
};

/// The core that `config` names, with its parameters registered under `prefix`.
std::unique_ptr<SequenceCore> make_core(ParameterStore& store, const std::string& prefix,
                                        const config::ModelConfig& config,
                                        std::int64_t context_length, std::int64_t layer);

}  // namespace ttt
