#pragma once
// TTT-MLP on one mini-batch of one pair, for the generic CUDA kernels. The equations: kernels/ttt.h; the backward:
// docs/numerics.md, "TTT". The counterpart of kernels/cpu/ttt_mlp.h.

#include "kernels/cuda/ttt_gelu.h"
#include "kernels/cuda/ttt_generic_linear.h"

namespace ttt::kernels::cuda::generic {

/// The members are those of LinearLearner.
class MlpLearner {
 public:
  MlpLearner() = default;
  __host__ __device__ MlpLearner(const Extents& e, bool with_backward, Arena& arena)
      : features_(e.features),
        width_(e.width),
        first_(e, e.features, e.width, with_backward, arena),
        second_(e, e.width, e.features, with_backward, arena),
        x2_(arena.rows(3 * e.block_rows, e.width)),
        z1_(arena.rows(e.block_rows, e.width)),
        slope_(arena.rows(e.block_rows, e.width)),
        u_(arena.rows(e.block_rows, e.width)),
        g1_(arena.rows(e.block_rows, e.width)),
        z1_bar_(arena.rows(e.block_rows, e.width)),
        step1_(arena.rows(e.block_rows, e.width)),
        z2_(arena.rows(e.block_rows, e.features)),
        n_(arena.rows(e.block_rows, e.features)),
        g2_(arena.rows(e.block_rows, e.features)),
        step2_(arena.rows(e.block_rows, e.features)),
        rstd_(arena.vector(e.block_rows)),
        d_z1_{},
        d_z2_{},
        d_x2_{} {
    if (!with_backward) return;
    d_z1_ = arena.rows(2 * e.block_rows, e.width);
    d_z2_ = arena.rows(3 * e.block_rows, e.features);
    d_x2_ = arena.rows(e.block_rows, e.width);
  }

  __attribute__((noinline)) __device__ void evaluate(const State& state, std::int64_t rows, Rows x,
                                                     Rows z) {
    multiply({rows, width_, features_}, plain(x), plain(state.first.w),
             [&](std::int64_t i, std::int64_t j, float sum) {
               z1_bar_.at(i, j) = Gelu::at(sum + state.first.bias(j)).value;
             });
    apply_layer(rows, z1_bar_, state.second, z, width_, features_);
  }

  __attribute__((noinline)) __device__ void gradients(const Block& block, const State& state) {
    const std::int64_t r = block.rows;
    multiply({r, width_, features_}, plain(block.k), plain(state.first.w),
             [&](std::int64_t i, std::int64_t j, float sum) {
               const float z = sum + state.first.bias(j);
               const Gelu gelu = Gelu::at(z);
               z1_.at(i, j) = z;
               x2_.at(i, j) = gelu.value;
               slope_.at(i, j) = gelu.slope;
             });
    apply_layer(r, x2_, state.second, z2_, width_, features_);
    loss_gradient(block.norm, r, z2_, block.target, n_, rstd_, g2_);
    multiply({r, width_, features_}, plain(g2_), transposed(state.second.w),
             [&](std::int64_t i, std::int64_t j, float sum) {
               u_.at(i, j) = sum;
               g1_.at(i, j) = sum * slope_.at(i, j);
             });
  }

  __attribute__((noinline)) __device__ void read(const Block& block, const State& state, Rows x_bar,
                                                 Rows z_bar) {
    const std::int64_t r = block.rows;
    const Rows x2_bar = x2_.from(r);
    first_.forward(block, x_bar, block.k, state.first, g1_, z1_bar_);
    for_each_entry(r, width_, [&](std::int64_t i, std::int64_t j) {
      const Gelu gelu = Gelu::at(z1_bar_.at(i, j));
      x2_bar.at(i, j) = gelu.value;
      z1_bar_.at(i, j) = gelu.slope;  // all that the backward needs of Z1'
    });
    second_.forward(block, x2_bar, x2_, state.second, g2_, z_bar);
  }

  __device__ void update(const Block& block, const State& state, const State& next) {
    step(block, -block.last_scale(), state, next);
  }

  __device__ void accumulate(const Block& block, const State& sums) {
    step(block, 1.0F, sums, sums);
  }

  __attribute__((noinline)) __device__ void backward(const Block& block, const State& state,
                                                     Rows d_out, const State& d_state,
                                                     const BlockGradients& out,
                                                     const PairSums& sums) {
    const std::int64_t r = block.rows;
    const Rows x2_bar = x2_.from(r);
    const Rows d_u = x2_.from(2 * r);     // [X2; X2'; dU] meets
    const Rows d_z2_bar = d_z2_.from(r);  // [dZ2; dZ2'; G2] in dW2
    const Rows d_z1_bar = d_z1_.from(r);  // [dZ1; dZ1'], as [k; q]
    read(block, state, block.q, z2_);
    output_backward(block.norm, r, z2_, d_out, d_z2_bar, sums.norm);
    clear_floats(r * width_, d_x2_.data);
    clear_floats(r * width_, d_z1_bar.data);
    second_.backward(
        block, {x2_bar, x2_, g2_, state.second, d_z2_bar, d_state.second, d_z1_bar, d_x2_, d_z2_},
        sums);
    for_each_entry(r, width_,
                   [&](std::int64_t i, std::int64_t j) { d_z1_bar.at(i, j) *= z1_bar_.at(i, j); });
    // The gradient of G1 arrives in d_z1_.
    first_.backward(
        block,
        {block.q, block.k, g1_, state.first, d_z1_bar, d_state.first, out.d_q, out.d_k, d_z1_},
        sums);
    for_each_entry(r, width_, [&](std::int64_t i, std::int64_t j) {
      d_u.at(i, j) = d_z1_.at(i, j) * slope_.at(i, j);
    });
    multiply({r, features_, width_}, plain(d_u), plain(state.second.w),
             [&](std::int64_t i, std::int64_t j, float sum) { d_z2_.at(i, j) += sum; });
    loss_gradient_backward(block.norm, r, {n_, g2_, block.target, rstd_}, d_z2_, d_z2_, out.d_v,
                           sums.norm);
    multiply({r, width_, features_}, plain(d_z2_), transposed(state.second.w),
             [&](std::int64_t i, std::int64_t j, float sum) {
               // dZ1 = dX2 * phi' + dG1 * U * phi''.
               d_z1_.at(i, j) = (d_x2_.at(i, j) + sum) * slope_.at(i, j) +
                                d_z1_.at(i, j) * u_.at(i, j) * Gelu::at(z1_.at(i, j)).bend;
             });
    multiply({r, features_, width_}, plain(d_z1_), transposed(state.first.w),
             [&](std::int64_t i, std::int64_t j, float sum) { out.d_k.at(i, j) += sum; });
    state_backward(block, d_state);
  }

 private:
  __attribute__((noinline)) __device__ void step(const Block& block, float factor,
                                                 const State& state, const State& next) {
    scale_step(block, factor, width_, g1_, step1_);
    scale_step(block, factor, features_, g2_, step2_);
    step_layer(block.rows, block.k, step1_, state.first, next.first, features_, width_);
    step_layer(block.rows, x2_, step2_, state.second, next.second, width_, features_);
  }

  __attribute__((noinline)) __device__ void state_backward(const Block& block,
                                                           const State& d_state) {
    const std::int64_t r = block.rows;
    step_layer(2 * r, block.k, d_z1_, d_state.first, d_state.first, features_, width_);
    // dU^T G2 is of W2 alone, so b2 takes no part in it.
    copy_floats(r * features_, g2_.data, d_z2_.row(2 * r));
    step_layer(3 * r, x2_, d_z2_, {d_state.second.w, nullptr}, {d_state.second.w, nullptr}, width_,
               features_);
    if (d_state.second.b == nullptr) return;
    for_each_index(features_, [&](std::int64_t j) {
      float sum = 0.0F;
      for (std::int64_t i = 0; i < 2 * r; ++i) sum += d_z2_.at(i, j);
      d_state.second.b[j] += sum;
    });
  }

  std::int64_t features_, width_;
  ReadStep first_, second_;
  Rows x2_;              // [X2; X2'; dU]
  Rows z1_, slope_, u_;  // Z1, phi'(Z1), G2 W2^T
  Rows g1_, z1_bar_, step1_;
  Rows z2_, n_, g2_, step2_;  // n and g2 of the loss: the normalised Z2, and G2
  float* rstd_;               // [rows]
  Rows d_z1_, d_z2_, d_x2_;
};

/// What a block of threads needs of a pair where no backward follows.
template <typename Learner>
struct ForwardWorker {
  Block block;
  float* state;  // packed: that of the mini-batch, or of a decoded token
  Learner learner;
  Rows z;

  ForwardWorker() = default;
  __host__ __device__ ForwardWorker(const Extents& e, Arena& arena)
      : block(e, arena),
        state(arena.vector(e.state_size())),
        learner(e, false, arena),
        z(arena.rows(e.block_rows, e.features)) {}
};

/// run(a learner of the options' type).
template <typename Run>
void visit_learner(const Extents& e, Run&& run) {
  if (e.mlp) {
    run(MlpLearner{});
  } else {
    run(LinearLearner{});
  }
}

}  // namespace ttt::kernels::cuda::generic
