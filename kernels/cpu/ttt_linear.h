#pragma once
// TTT-Linear on one mini-batch of one pair. The equations: kernels/ttt.h; the backward: docs/numerics.md, "TTT".

#include <cstdint>

#include "kernels/cpu/ttt_read_step.h"

namespace ttt::kernels::ttt_cpu {

/// What one mini-batch keeps for its read step and its backward. z1, s and u: MLP only.
template <typename T>
struct Tape {
  State<T> start;
  Rows<T> z1, s, u;   // Z1, the sigmoid inside gelu(Z1), G2 W2^T
  Rows<T> n, g;       // of the loss: the normalised Z (Z2) and G (G2)
  T* rstd = nullptr;  // [rows]

  Tape(const Extents& e, Arena<T>& arena)
      : n(arena.rows(e.block_rows, e.features)),
        g(arena.rows(e.block_rows, e.features)),
        rstd(arena.vector(e.block_rows)) {
    if (!e.mlp) return;
    z1 = arena.rows(e.block_rows, e.width);
    s = arena.rows(e.block_rows, e.width);
    u = arena.rows(e.block_rows, e.width);
  }
};

/// Gradients of one mini-batch's rows; d_k and d_q are one matrix of 2 * rows rows.
template <typename T>
struct BlockGradients {
  Rows<T> d_k, d_q, d_v;
};

template <typename T>
class LinearLearner {
 public:
  LinearLearner(const Extents& e, bool with_backward, Arena<T>& arena)
      : features_(e.features),
        read_(e.features, e.features, e.block_rows, arena),
        z_(arena.rows(e.block_rows, e.features)),
        u_(arena.rows(e.block_rows, e.features)) {
    if (!with_backward) return;
    d_z_ = arena.rows(2 * e.block_rows, e.features);
    w_t_ = arena.rows(e.features, e.features);
    d_w_t_ = arena.rows(e.features, e.features);
  }

  /// f(x; W) before the norm.
  void evaluate(const State<T>& state, std::int64_t rows, Rows<T> x, Rows<T> z) {
    multiply<Left::kPlain, T>(rows, features_, features_, x, state.first.w,
                              Start<T>(state.first.b, 0), z);
  }

  /// The inner loss's gradient at `state`, into the tape.
  void gradients(const Block<T>& block, const State<T>& state, const Tape<T>& tape) {
    evaluate(state, block.rows, block.k, z_);
    block.ahead.ask();
    loss_gradient(block.norm, block.rows, z_, block.target, tape.n, tape.rstd, tape.g);
  }

  /// After `gradients`: Z' of the rows `x_bar`, each with its own token's weights.
  void read(const Block<T>& block, const State<T>& state, const Tape<T>& tape, Rows<T> x_bar,
            Rows<T> z_bar) {
    read_.forward(block, x_bar, block.k, state.first, tape.g, z_bar);
  }

  /// After `gradients`: the state of the next mini-batch. `next` may be `state`.
  void update(const Block<T>& block, const State<T>& state, const Tape<T>& tape,
              const State<T>& next) {
    scale_step(block, features_, tape.g, u_);
    step_layer(block.rows, features_, features_, block.bias, block.k, u_, state.first, next.first);
  }

  /// After `gradients`: sums += l_j k_j^T G_j.
  void accumulate(const Block<T>& block, const Tape<T>& tape, const State<T>& sums) {
    for (std::int64_t i = 0; i < block.rows; ++i) {
      for (std::int64_t j = 0; j < features_; j += kLanes<T>) {
        simd::store(u_.row(i) + j, simd::load(tape.g.row(i) + j) * block.lr[i]);
      }
    }
    step_layer(block.rows, features_, features_, block.bias, block.k, u_, sums.first, sums.first);
  }

  /// From a tape filled by `gradients`. `d_state` comes as the gradient of the next mini-batch's state and leaves as
  /// that of this one's; sums.d_lr must be zero.
  void backward(const Block<T>& block, const Tape<T>& tape, Rows<T> d_out, const State<T>& d_state,
                const BlockGradients<T>& out, const PairSums<T>& sums) {
    const std::int64_t r = block.rows;
    const State<T>& state = tape.start;
    const Rows<T> d_z_bar = d_z_.from(r);  // [dZ; dZ'], as [k; q]
    block.ahead.ask();
    read(block, state, tape, block.q, z_);
    output_backward(block.norm, r, z_, d_out, d_z_bar, sums.norm);
    scale_step(block, features_, tape.g, u_);
    transpose(features_, features_, state.first.w, w_t_);
    block.ahead.ask();
    transpose(features_, features_, d_state.first.w, d_w_t_);
    read_.backward(block,
                   {block.q, block.k, tape.g, u_, d_z_bar, d_state.first, w_t_, d_w_t_, out.d_q,
                    out.d_k, d_z_},
                   sums);
    loss_gradient_backward(block.norm, r, {tape.n, tape.g, block.target, tape.rstd}, d_z_, d_z_,
                           out.d_v, sums.norm);
    multiply<Left::kPlain, T>(r, features_, features_, d_z_, w_t_, out.d_k, out.d_k);
    block.ahead.ask();
    step_layer(2 * r, features_, features_, block.bias, block.k, d_z_, d_state.first,
               d_state.first);
  }

 private:
  std::int64_t features_;
  ReadStep<T> read_;
  Rows<T> z_, u_;
  Rows<T> d_z_, w_t_, d_w_t_;
};

}  // namespace ttt::kernels::ttt_cpu
