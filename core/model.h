#pragma once
// The language model: embedding, blocks, final norm, head.

#include <memory>
#include <optional>
#include <vector>

#include "configs/run.pb.h"
#include "core/base/flat_range.h"
#include "core/layers/block.h"

namespace ttt {

/// A batch of B sequences of T tokens with the weight of every target's loss.
struct TokenBatch {
  TensorView ids;           // [B, T] I64
  TensorView targets;       // [B, T] I64: the token after ids[b, t]
  TensorView token_weight;  // [B, T] F64: the loss is sum weight * nll; 0 masks
};

/// The published loss is the mean over the batch's rows of each row's masked mean: `weight` of a token
/// is mask / (rows * max(sum mask, 1e-10)). Source: ttt-lm-jax (cross_entropy_loss_and_accuracy).
void set_row_weights(std::span<const double> mask, std::int64_t rows, std::span<double> weight);

class LanguageModel {
 public:
  /// Registers all parameters; call allocate() on them before use. `context_length` matters only
  /// where a TTT mini-batch is the whole sequence (TttConfig.mini_batch_size = 0).
  LanguageModel(const config::ModelConfig& config, std::int64_t context_length);

  [[nodiscard]] ParameterStore& parameters() { return store_; }
  [[nodiscard]] const ParameterStore& parameters() const { return store_; }
  [[nodiscard]] const config::ModelConfig& config() const { return config_; }

  /// Adds the gradient of the loss to every grad and writes nll [B, T] F64 (unweighted). With
  /// `recompute_blocks` only the blocks' inputs are kept and each block's forward runs again. With
  /// Context::sequence the batch is this rank's segment; every rank's grads are terms of one sum.
  /// Tells the context's observer of every layer.
  void forward_backward(const TokenBatch& batch, TensorView nll, bool recompute_blocks,
                        Context& context) const;
  /// Cuts the flat buffers where backward passes from one layer to the next, in parts of at least `min_elements` but for
  /// the first: what a PassObserver can treat piece by piece. In order, without gaps.
  [[nodiscard]] std::vector<FlatRange> buckets(std::int64_t min_elements) const;
  /// nll [B, T] F64 without gradients.
  void evaluate(const TokenBatch& batch, TensorView nll, Context& context) const;
  /// All logits [B, T, V] of ids [B, T]: for probing, not for training.
  [[nodiscard]] Tensor logits(TensorView ids, Context& context) const;

  /// State of B sequences without tokens.
  [[nodiscard]] std::unique_ptr<DecodeState> make_decode_state(std::int64_t batch,
                                                               Context& context) const;
  /// Of its mixers (core/mixers/sequence_core.h).
  [[nodiscard]] std::optional<std::int64_t> decode_period() const {
    return blocks_.front()->mixer().core().decode_period();
  }
  /// Feeds ids [B, n]; returns the logits of all n tokens [B, n, V], or of the last one [B, 1, V].
  Tensor extend(TensorView ids, DecodeState& state, bool all_logits, Context& context) const;

  /// Floating-point operations of one forward pass a token (a multiply-add counts two); training
  /// is three times that.
  [[nodiscard]] double flops_per_token(std::int64_t context_length) const;
  [[nodiscard]] const Block& block(std::int64_t index) const {
    return *blocks_[static_cast<std::size_t>(index)];
  }

 private:
  [[nodiscard]] Tensor embed(TensorView ids, Context& context) const;
  /// Runs the blocks without keeping anything; returns the normed output [B, T, C].
  [[nodiscard]] Tensor encode(TensorView ids, Context& context) const;
  [[nodiscard]] Tensor head_logits(const Tensor& hidden, Context& context) const;

  config::ModelConfig config_;
  ParameterStore store_;
  const Parameter* embedding_;
  std::vector<std::unique_ptr<Block>> blocks_;
  // Of each block in the flat buffers, then of what follows the blocks.
  std::vector<std::int64_t> begins_;
  std::unique_ptr<RmsNorm> final_norm_;
  const Parameter* head_;  // the embedding when tied
};

}  // namespace ttt
