#pragma once
// TTT-MLP on one mini-batch of one pair. The equations: kernels/ttt.h; the backward: docs/numerics.md, "TTT".
// The members are those of LinearLearner (ttt_linear.h).

#include <cstdint>

#include "kernels/cpu/ttt_linear.h"

namespace ttt::kernels::ttt_cpu {

/// gelu_tanh and its derivatives. With s = sigmoid(2 w), w = sqrt(2/pi) (x + 0.044715 x^3): phi = x s, which keeps the
/// relative accuracy of s in the left tail.
template <typename T>
struct Gelu {
  Vec<T> value, slope, bend;

  static constexpr T kScale = T(0.79788456080286535588);  // sqrt(2 / pi)
  static constexpr T kCubic = T(0.044715);

  /// s: the only part that costs an exponential.
  [[gnu::always_inline]] static Vec<T> sigmoid(Vec<T> x) {
    const Vec<T> w = x * simd::fma(x * x, simd::splat(kScale * kCubic), simd::splat(kScale));
    return T(1) / (simd::exp(w * T(-2)) + T(1));
  }

  [[gnu::always_inline]] explicit Gelu(Vec<T> x) : Gelu(x, sigmoid(x)) {}

  [[gnu::always_inline]] Gelu(Vec<T> x, Vec<T> s) {
    const Vec<T> square = x * x;
    const Vec<T> w1 = simd::fma(square, simd::splat(3 * kScale * kCubic), simd::splat(kScale));
    const Vec<T> w2 = x * (6 * kScale * kCubic);
    const Vec<T> s1 = T(2) * s * (T(1) - s);  // tanh' / 2
    const Vec<T> t = T(2) * s - T(1);
    value = x * s;
    slope = simd::fma(x * w1, s1, s);
    bend = s1 * (T(2) * w1 + x * (w2 - T(2) * t * w1 * w1));
  }
};

template <typename T>
class MlpLearner {
 public:
  MlpLearner(const Extents& e, bool with_backward, Arena<T>& arena)
      : features_(e.features),
        width_(e.width),
        first_(e.features, e.width, e.block_rows, arena),
        second_(e.width, e.features, e.block_rows, arena),
        x2_(arena.rows(3 * e.block_rows, e.width)),
        g1_(arena.rows(e.block_rows, e.width)),
        slope_(arena.rows(e.block_rows, e.width)),
        z1_bar_(arena.rows(e.block_rows, e.width)),
        z2_(arena.rows(e.block_rows, e.features)),
        u1_(arena.rows(e.block_rows, e.width)),
        u2_(arena.rows(e.block_rows, e.features)),
        w2_t_(arena.rows(e.features, e.width)) {
    if (!with_backward) return;
    d_z1_ = arena.rows(2 * e.block_rows, e.width);
    d_z2_ = arena.rows(3 * e.block_rows, e.features);
    d_x2_ = arena.rows(e.block_rows, e.width);
    w1_t_ = arena.rows(e.width, e.features);
    d_w1_t_ = arena.rows(e.width, e.features);
    d_w2_t_ = arena.rows(e.features, e.width);
  }

  void evaluate(const State<T>& state, std::int64_t rows, Rows<T> x, Rows<T> z) {
    multiply<Left::kPlain, T>(rows, width_, features_, x, state.first.w, Start<T>(state.first.b, 0),
                              z1_bar_);
    for_each_vector<T>(rows, width_, [&](std::int64_t i, std::int64_t j) {
      simd::store(z1_bar_.row(i) + j, Gelu<T>(simd::load(z1_bar_.row(i) + j)).value);
    });
    multiply<Left::kPlain, T>(rows, features_, width_, z1_bar_, state.second.w,
                              Start<T>(state.second.b, 0), z);
  }

  void gradients(const Block<T>& block, const State<T>& state, const Tape<T>& tape) {
    const std::int64_t r = block.rows;
    multiply<Left::kPlain, T>(r, width_, features_, block.k, state.first.w,
                              Start<T>(state.first.b, 0), tape.z1);
    for_each_vector<T>(r, width_, [&](std::int64_t i, std::int64_t j) {
      const Vec<T> z = simd::load(tape.z1.row(i) + j);
      const Vec<T> s = Gelu<T>::sigmoid(z);
      const Gelu<T> gelu(z, s);
      simd::store(tape.s.row(i) + j, s);
      simd::store(x2_.row(i) + j, gelu.value);
      simd::store(slope_.row(i) + j, gelu.slope);
    });
    multiply<Left::kPlain, T>(r, features_, width_, x2_, state.second.w,
                              Start<T>(state.second.b, 0), z2_);
    loss_gradient(block.norm, r, z2_, block.target, tape.n, tape.rstd, tape.g);
    block.ahead.ask();
    transpose(width_, features_, state.second.w, w2_t_);
    multiply<Left::kPlain, T>(r, width_, features_, tape.g, w2_t_, {}, tape.u);
    for_each_vector<T>(r, width_, [&](std::int64_t i, std::int64_t j) {
      simd::store(g1_.row(i) + j, simd::load(tape.u.row(i) + j) * simd::load(slope_.row(i) + j));
    });
  }

  void read(const Block<T>& block, const State<T>& state, const Tape<T>& tape, Rows<T> x_bar,
            Rows<T> z_bar) {
    const std::int64_t r = block.rows;
    const Rows<T> x2_bar = x2_.from(r);
    first_.forward(block, x_bar, block.k, state.first, g1_, z1_bar_);
    for_each_vector<T>(r, width_, [&](std::int64_t i, std::int64_t j) {
      const Gelu<T> gelu(simd::load(z1_bar_.row(i) + j));
      simd::store(x2_bar.row(i) + j, gelu.value);
      simd::store(z1_bar_.row(i) + j, gelu.slope);  // all that the backward needs of Z1'
    });
    second_.forward(block, x2_bar, x2_, state.second, tape.g, z_bar);
  }

  void update(const Block<T>& block, const State<T>& state, const Tape<T>& tape,
              const State<T>& next) {
    scale_step(block, width_, g1_, u1_);
    scale_step(block, features_, tape.g, u2_);
    step(block, state, next);
  }

  void accumulate(const Block<T>& block, const Tape<T>& tape, const State<T>& sums) {
    for (std::int64_t i = 0; i < block.rows; ++i) {
      for (std::int64_t j = 0; j < width_; j += kLanes<T>) {
        simd::store(u1_.row(i) + j, simd::load(g1_.row(i) + j) * block.lr[i]);
      }
      for (std::int64_t j = 0; j < features_; j += kLanes<T>) {
        simd::store(u2_.row(i) + j, simd::load(tape.g.row(i) + j) * block.lr[i]);
      }
    }
    step(block, sums, sums);
  }

  void backward(const Block<T>& block, const Tape<T>& tape, Rows<T> d_out, const State<T>& d_state,
                const BlockGradients<T>& out, const PairSums<T>& sums) {
    const std::int64_t r = block.rows;
    const State<T>& state = tape.start;
    const Rows<T> x2_bar = x2_.from(r);
    const Rows<T> d_u = x2_.from(2 * r);     // [X2; X2'; dU] meets
    const Rows<T> d_z2_bar = d_z2_.from(r);  // [dZ2; dZ2'; G2] in dW2
    const Rows<T> d_z1_bar = d_z1_.from(r);  // [dZ1; dZ1'], as [k; q]
    restore(block, tape);
    read(block, state, tape, block.q, z2_);
    output_backward(block.norm, r, z2_, d_out, d_z2_bar, sums.norm);
    scale_step(block, width_, g1_, u1_);
    scale_step(block, features_, tape.g, u2_);
    transpose(features_, width_, state.first.w, w1_t_);
    transpose(width_, features_, state.second.w, w2_t_);
    transpose(features_, width_, d_state.first.w, d_w1_t_);
    transpose(width_, features_, d_state.second.w, d_w2_t_);

    clear(r, d_x2_);
    clear(r, d_z1_bar);
    second_.backward(block,
                     {x2_bar, x2_, tape.g, u2_, d_z2_bar, d_state.second, w2_t_, d_w2_t_, d_z1_bar,
                      d_x2_, d_z2_},
                     sums);
    for_each_vector<T>(r, width_, [&](std::int64_t i, std::int64_t j) {
      simd::store(d_z1_bar.row(i) + j,
                  simd::load(d_z1_bar.row(i) + j) * simd::load(z1_bar_.row(i) + j));
    });
    // The gradient of G1 arrives in d_z1_.
    first_.backward(block,
                    {block.q, block.k, g1_, u1_, d_z1_bar, d_state.first, w1_t_, d_w1_t_, out.d_q,
                     out.d_k, d_z1_},
                    sums);
    for_each_vector<T>(r, width_, [&](std::int64_t i, std::int64_t j) {
      simd::store(d_u.row(i) + j, simd::load(d_z1_.row(i) + j) * simd::load(slope_.row(i) + j));
    });
    multiply<Left::kPlain, T>(r, features_, width_, d_u, state.second.w, d_z2_, d_z2_);
    loss_gradient_backward(block.norm, r, {tape.n, tape.g, block.target, tape.rstd}, d_z2_, d_z2_,
                           out.d_v, sums.norm);
    multiply<Left::kPlain, T>(r, width_, features_, d_z2_, w2_t_, d_x2_, d_x2_);
    for_each_vector<T>(r, width_, [&](std::int64_t i, std::int64_t j) {
      // dZ1 = dX2 * phi' + dG1 * U * phi''.
      const Vec<T> inner = simd::load(d_z1_.row(i) + j) * bend_of(tape, i, j);
      simd::store(d_z1_.row(i) + j,
                  simd::fma(simd::load(d_x2_.row(i) + j), simd::load(slope_.row(i) + j), inner));
    });
    multiply<Left::kPlain, T>(r, features_, width_, d_z1_, w1_t_, out.d_k, out.d_k);
    step_layer(2 * r, features_, width_, block.bias, block.k, d_z1_, d_state.first, d_state.first);
    copy_rows(r, features_, tape.g.data, tape.g.stride, d_z2_.row(2 * r), d_z2_.stride);
    multiply<Left::kTransposed, T>(width_, features_, 3 * r, x2_, d_z2_, d_state.second.w,
                                   d_state.second.w);
    if (block.bias) add_column_sums(2 * r, features_, d_z2_, d_state.second.b);
  }

 private:
  void step(const Block<T>& block, const State<T>& state, const State<T>& next) {
    step_layer(block.rows, features_, width_, block.bias, block.k, u1_, state.first, next.first);
    step_layer(block.rows, width_, features_, block.bias, x2_, u2_, state.second, next.second);
  }

  void clear(std::int64_t rows, Rows<T> x) {
    for (std::int64_t i = 0; i < rows; ++i) std::fill_n(x.row(i), x.stride, T(0));
  }

  /// X2, phi'(Z1) and G1 of a tape filled earlier.
  void restore(const Block<T>& block, const Tape<T>& tape) {
    for_each_vector<T>(block.rows, width_, [&](std::int64_t i, std::int64_t j) {
      const Gelu<T> gelu(simd::load(tape.z1.row(i) + j), simd::load(tape.s.row(i) + j));
      simd::store(x2_.row(i) + j, gelu.value);
      simd::store(slope_.row(i) + j, gelu.slope);
      simd::store(g1_.row(i) + j, simd::load(tape.u.row(i) + j) * gelu.slope);
    });
  }

  /// U * phi''(Z1).
  static Vec<T> bend_of(const Tape<T>& tape, std::int64_t i, std::int64_t j) {
    const Gelu<T> gelu(simd::load(tape.z1.row(i) + j), simd::load(tape.s.row(i) + j));
    return simd::load(tape.u.row(i) + j) * gelu.bend;
  }

  std::int64_t features_, width_;
  ReadStep<T> first_, second_;
  Rows<T> x2_;  // [X2; X2'; dU]
  Rows<T> g1_, slope_, z1_bar_, z2_, u1_, u2_;
  Rows<T> w2_t_;
  Rows<T> d_z1_, d_z2_, d_x2_;
  Rows<T> w1_t_, d_w1_t_, d_w2_t_;
};

}  // namespace ttt::kernels::ttt_cpu
