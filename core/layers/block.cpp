#include "core/layers/block.h"

#include "kernels/copy.h"

namespace ttt {
namespace {

// What one residual branch saves. The normed input is computed again in backward: a pass over memory, against a tensor
// of the stream's size for every branch of every block.
struct Branch {
  Tensor rstd;
  std::unique_ptr<Saved> inner;
};

struct BlockSaved final : Saved {
  Branch mixer, ffn;
  Tensor after_conv, after_mixer;  // the residual stream between the branches
  Tensor conv_halo;
};

struct BlockDecodeState final : DecodeState {
  Tensor conv_history;
  std::unique_ptr<DecodeState> mixer, ffn;
};

Tensor normalize(const RmsNorm& norm, TensorView h, TensorView rstd, Context& context) {
  Tensor normed(h.shape(), h.dtype());
  norm.forward(h, normed, rstd, context);
  return normed;
}

Tensor open_branch(const RmsNorm& norm, TensorView h, Branch& branch, Context& context) {
  branch.rstd = Tensor({h.size(0) * h.size(1)}, wide_type(h.dtype()));
  return normalize(norm, h, branch.rstd, context);
}

// d_h = d_y + (norm backward)(d_normed), in the memory of d_normed.
void close_branch(const RmsNorm& norm, TensorView h, const Branch& branch, TensorView d_y,
                  TensorView d_normed, Context& context) {
  norm.backward(h, branch.rstd, d_normed, d_y, d_normed, context);
}

}  // namespace

Block::Block(ParameterStore& store, const std::string& prefix, const config::ModelConfig& config,
             std::int64_t context_length, std::int64_t index)
    : store_(store),
      pre_conv_(config.pre_conv()
                    ? std::make_unique<PreConv>(store, prefix + ".conv", config.hidden_size(),
                                                config.conv_kernel(), config.rms_norm_epsilon())
                    : nullptr),
      mixer_(store, prefix + ".seq_modeling_block", config, context_length, index),
      ffn_(store, prefix + ".mlp", config.hidden_size(), config.intermediate_size(),
           Initializer::normal(config.initializer_range())),
      seq_norm_(store, prefix + ".seq_norm.weight", config.hidden_size(),
                config.rms_norm_epsilon()),
      ffn_norm_(store, prefix + ".ffn_norm.weight", config.hidden_size(),
                config.rms_norm_epsilon()) {}

std::unique_ptr<Saved> Block::forward(TensorView x, TensorView y, Context& context) const {
  auto saved = std::make_unique<BlockSaved>();
  TensorView h = x;
  if (pre_conv_) {
    saved->after_conv = Tensor(x.shape(), x.dtype());
    saved->conv_halo = pre_conv_->halo(h, context);
    pre_conv_->forward(h, saved->conv_halo, saved->after_conv, context);
    h = saved->after_conv;
  }
  saved->after_mixer = Tensor(x.shape(), x.dtype());
  saved->mixer.inner = mixer_.forward(open_branch(seq_norm_, h, saved->mixer, context), h,
                                      saved->after_mixer, context);
  saved->ffn.inner = ffn_.forward(open_branch(ffn_norm_, saved->after_mixer, saved->ffn, context),
                                  saved->after_mixer, y, context);
  return saved;
}

void Block::backward(const Saved& saved, TensorView x, TensorView d_y, TensorView d_x,
                     Context& context) const {
  const auto& s = static_cast<const BlockSaved&>(saved);
  const TensorView h = pre_conv_ ? s.after_conv.view() : x;
  const Tensor d_after_mixer(d_y.shape(), d_y.dtype());
  ffn_.backward(*s.ffn.inner, normalize(ffn_norm_, s.after_mixer, {}, context), d_y, d_after_mixer,
                context);
  close_branch(ffn_norm_, s.after_mixer, s.ffn, d_y, d_after_mixer, context);

  // The gradient of the mixer's input h: d_x itself unless a convolution lies between.
  const Tensor scratch = pre_conv_ ? Tensor(d_y.shape(), d_y.dtype()) : Tensor();
  const TensorView d_h = pre_conv_ ? scratch.view() : d_x;
  mixer_.backward(*s.mixer.inner, normalize(seq_norm_, h, {}, context), d_after_mixer, d_h,
                  context);
  close_branch(seq_norm_, h, s.mixer, d_after_mixer, d_h, context);
  if (pre_conv_) pre_conv_->backward(x, s.conv_halo, d_h, d_x, context);
}

std::unique_ptr<DecodeState> Block::make_decode_state(std::int64_t batch, Context& context) const {
  auto state = std::make_unique<BlockDecodeState>();
  if (pre_conv_) {
    state->conv_history = kernels::zeros(pre_conv_->history_shape(batch),
                                         context.activation_type(store_.dtype()), context.stream);
  }
  state->mixer = mixer_.make_decode_state(batch, context);
  state->ffn = ffn_.make_decode_state(batch, context);
  return state;
}

void Block::extend(TensorView x, TensorView y, DecodeState& state, Context& context) const {
  auto& s = static_cast<BlockDecodeState&>(state);
  TensorView h = x;
  Tensor after_conv;
  if (pre_conv_) {
    after_conv = Tensor(x.shape(), x.dtype());
    pre_conv_->extend(h, after_conv, s.conv_history, context);
    h = after_conv;
  }
  const Tensor after_mixer(x.shape(), x.dtype());
  mixer_.extend(normalize(seq_norm_, h, {}, context), h, after_mixer, *s.mixer, context);
  ffn_.extend(normalize(ffn_norm_, after_mixer, {}, context), after_mixer, y, *s.ffn, context);
}

}  // namespace ttt
