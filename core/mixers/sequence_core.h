#pragma once
// What distinguishes one mixer from another: the map from queries, keys and values to outputs.
// QkvMixer (core/mixers/qkv_mixer.h) is everything around it.
//
//   (out_1 .. out_T) = core(q_1..T, k_1..T, v_1..T; x_1..T), causal in t
//
// Dims: B batch, T tokens, H query heads, G key heads (G = H except for grouped-query attention),
//   F head dim, C model dim. Of split sequences a core sees its segment and passes its state on, or the whole sequence
//   and H, G of this rank's share of the heads, while x is the segment (core/sequence_exchange.h).
// Numerics: state in the element type of the activations, F32 or F64.
// Errors: kInternal when shapes do not fit.
// Source: arXiv:2407.04620 section 2 (a sequence layer is a learner run over the tokens).

#include <optional>

#include "core/layer.h"
#include "kernels/rope.h"

namespace ttt {

struct CoreInputs {
  TensorView x;     // [B, T, C], the mixer's input: rates and gates may depend on it
  TensorView q;     // [B, T, H, F]; q and k are rotated as SequenceCore::rope says
  TensorView k, v;  // [B, T, G, F]
};

struct CoreGradients {
  TensorView d_q, d_k, d_v;  // out: with respect to q, k, v as they were given to forward
  TensorView d_x;            // [B, T, C] in-out, added to
};

class SequenceCore {
 public:
  SequenceCore() = default;
  SequenceCore(const SequenceCore&) = delete;
  SequenceCore& operator=(const SequenceCore&) = delete;
  virtual ~SequenceCore() = default;

  /// How q and k are rotated before they come here, positions counted from the sequence's start; absent: not at all.
  [[nodiscard]] virtual std::optional<kernels::RopeOptions> rope() const = 0;

  /// out: [B, T, H, F]. All inputs and `out` must live, unchanged, until backward is done.
  [[nodiscard]] virtual std::unique_ptr<Saved> forward(const CoreInputs& inputs, TensorView out,
                                                       Context& context) const = 0;
  /// `d_out` [B, T, H, F] may be overwritten.
  virtual void backward(const Saved& saved, const CoreInputs& inputs, TensorView out,
                        TensorView d_out, const CoreGradients& gradients,
                        Context& context) const = 0;

  [[nodiscard]] virtual std::unique_ptr<DecodeState> make_decode_state(std::int64_t batch,
                                                                       Context& context) const = 0;
  /// n >= 1 further tokens from `state` (Layer::extend).
  virtual void extend(const CoreInputs& inputs, TensorView out, DecodeState& state,
                      Context& context) const = 0;

  /// After how many tokens `extend` by one token queues the same ops with the same arguments again: the state stays where it is,
  /// and whatever else depends on the position has this period. Absent where the state grows.
  [[nodiscard]] virtual std::optional<std::int64_t> decode_period() const = 0;

  /// Floating-point operations of forward for one token of a sequence of `context_length`.
  [[nodiscard]] virtual double flops_per_token(std::int64_t context_length) const = 0;
};

}  // namespace ttt
