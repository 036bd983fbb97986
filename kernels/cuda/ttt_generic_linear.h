#pragma once
// TTT-Linear on one mini-batch of one pair, for the generic CUDA kernels. The equations: kernels/ttt.h; the backward:
// docs/numerics.md, "TTT". The counterpart of kernels/cpu/ttt_read_step.h and ttt_linear.h.
//
// A learner lies in shared memory; its matrices are in scratch. `gradients` comes first: it leaves what `read`,
// `update`, `accumulate` and `backward` of the same mini-batch at the same state use.

#include "kernels/cuda/ttt_generic_norm.h"

namespace ttt::kernels::cuda::generic {

/// Sums over the mini-batches of a pair; d_lr is of the present mini-batch.
struct PairSums {
  float* d_lr;     // [rows]
  float* d_scale;  // [K]
  NormSums norm;
};

/// Z = X W + b.
__attribute__((noinline)) __device__ inline void apply_layer(std::int64_t rows, Rows x,
                                                             const Layer& layer, Rows z,
                                                             std::int64_t inputs,
                                                             std::int64_t outputs) {
  multiply({rows, outputs, inputs}, plain(x), plain(layer.w),
           [&](std::int64_t i, std::int64_t j, float sum) { z.at(i, j) = sum + layer.bias(j); });
}

/// W_next = W + X^T U and likewise b. `next` may be `layer`.
__attribute__((noinline)) __device__ inline void step_layer(std::int64_t rows, Rows x, Rows u,
                                                            const Layer& layer, const Layer& next,
                                                            std::int64_t inputs,
                                                            std::int64_t outputs) {
  multiply(
      {inputs, outputs, rows}, transposed(x), plain(u),
      [&](std::int64_t i, std::int64_t j, float sum) { next.w.at(i, j) = layer.w.at(i, j) + sum; });
  if (layer.b == nullptr) return;
  for_each_index(outputs, [&](std::int64_t j) {
    float sum = layer.b[j];
    for (std::int64_t i = 0; i < rows; ++i) sum += u.at(i, j);
    next.b[j] = sum;
  });
}

/// U = factor diag(l) G.
__device__ inline void scale_step(const Block& block, float factor, std::int64_t outputs, Rows g,
                                  Rows u) {
  for_each_entry(block.rows, outputs, [&](std::int64_t i, std::int64_t j) {
    u.at(i, j) = factor * block.lr[i] * g.at(i, j);
  });
}

/// What the backward of a read step is given and where it puts its results.
struct ReadBackward {
  Rows x_bar, x, g;  // of the forward
  Layer layer;
  Rows d_z_bar;            // dL/dZ'
  Layer d_next;            // gradient of the updated layer
  Rows d_x_bar, d_x, d_g;  // out; d_x_bar and d_x are added to
};

/// The read step of one layer and its backward:
///   Z' = X' W + b + P G,  P = -(M * (X' X^T + 1)),  M_ij = c_i l_j for j <= i
///   W_next = W + X^T U,   U = -c_r diag(l) G
class ReadStep {
 public:
  ReadStep() = default;
  __host__ __device__ ReadStep(const Extents& e, std::int64_t inputs, std::int64_t outputs,
                               bool with_backward, Arena& arena)
      : inputs_(inputs),
        outputs_(outputs),
        step_(arena.rows(e.block_rows, e.block_rows)),
        scores_{},
        d_scores_{},
        update_read_{},
        d_last_(nullptr) {
    if (!with_backward) return;
    scores_ = arena.rows(e.block_rows, e.block_rows);
    d_scores_ = arena.rows(e.block_rows, e.block_rows);
    update_read_ = arena.rows(e.block_rows, outputs);
    d_last_ = arena.vector(e.block_rows);
  }

  /// Z' into z_bar; keeps P and X' X^T + 1 for the backward.
  __attribute__((noinline)) __device__ void forward(const Block& block, Rows x_bar, Rows x,
                                                    const Layer& layer, Rows g, Rows z_bar) {
    const std::int64_t r = block.rows;
    const float one = block.e.bias ? 1.0F : 0.0F;
    multiply({r, r, inputs_}, plain(x_bar), transposed(x),
             [&](std::int64_t i, std::int64_t j, float sum) {
               const float score = sum + one;
               step_.at(i, j) = j <= i ? -block.scale[i] * block.lr[j] * score : 0.0F;
               if (scores_.data != nullptr) scores_.at(i, j) = score;
             });
    apply_layer(r, x_bar, layer, z_bar, inputs_, outputs_);
    multiply({r, outputs_, r}, plain(step_), plain(g),
             [&](std::int64_t i, std::int64_t j, float sum) { z_bar.at(i, j) += sum; });
  }

  /// After `forward` on the same mini-batch. The gradient of the layer itself is the caller's.
  __attribute__((noinline)) __device__ void backward(const Block& block, const ReadBackward& p,
                                                     const PairSums& sums) {
    const std::int64_t r = block.rows;
    const float last = block.last_scale();
    // d = dL/dP's negative below the diagonal; scores_ becomes dL/dM, d_scores_ is dL/d(X' X^T).
    multiply({r, r, outputs_}, plain(p.d_z_bar), transposed(p.g),
             [&](std::int64_t i, std::int64_t j, float sum) {
               const bool is_lower = j <= i;
               scores_.at(i, j) = is_lower ? -sum * scores_.at(i, j) : 0.0F;
               d_scores_.at(i, j) = is_lower ? -sum * block.lr[j] * block.scale[i] : 0.0F;
             });
    apply_layer(r, p.x, p.d_next, update_read_, inputs_, outputs_);
    for_each_row(r, [&](std::int64_t j) {
      const float product =
          row_sum(outputs_, [&](std::int64_t f) { return update_read_.at(j, f) * p.g.at(j, f); });
      if (this_lane() == 0) d_last_[j] = -product;
    });
    step_size_backward(block, sums);
    multiply({r, outputs_, r}, transposed(step_), plain(p.d_z_bar),
             [&](std::int64_t i, std::int64_t j, float sum) {
               p.d_g.at(i, j) = sum - last * block.lr[i] * update_read_.at(i, j);
             });
    const auto add_to = [](const Rows& to) {
      return [to](std::int64_t i, std::int64_t j, float sum) { to.at(i, j) += sum; };
    };
    multiply({r, inputs_, r}, plain(d_scores_), plain(p.x), add_to(p.d_x_bar));
    multiply({r, inputs_, outputs_}, plain(p.d_z_bar), transposed(p.layer.w), add_to(p.d_x_bar));
    multiply({r, inputs_, r}, transposed(d_scores_), plain(p.x_bar), add_to(p.d_x));
    multiply({r, inputs_, outputs_}, plain(p.g), transposed(p.d_next.w),
             [&](std::int64_t i, std::int64_t j, float sum) {
               p.d_x.at(i, j) -= last * block.lr[i] * sum;
             });
  }

 private:
  /// dL/dM, whose last row also has d_last_ of the update, into d_lr and d_scale.
  __device__ void step_size_backward(const Block& block, const PairSums& sums) {
    const std::int64_t r = block.rows;
    for_each_row(r, [&](std::int64_t i) {
      const float d_scale = row_sum(r, [&](std::int64_t j) {
        return (scores_.at(i, j) + (i + 1 == r ? d_last_[j] : 0.0F)) * block.lr[j];
      });
      if (this_lane() == 0) sums.d_scale[i] += d_scale;
    });
    for_each_index(r, [&](std::int64_t j) {
      float d_lr = d_last_[j] * block.last_scale();
      for (std::int64_t i = j; i < r; ++i) d_lr += scores_.at(i, j) * block.scale[i];
      sums.d_lr[j] += d_lr;
    });
  }

  std::int64_t inputs_, outputs_;
  Rows step_, scores_, d_scores_, update_read_;
  float* d_last_;  // [rows]: what the update adds to the last row of dL/dM
};

/// Gradients of one mini-batch's rows; d_q and d_k are added to.
struct BlockGradients {
  Rows d_k, d_q, d_v;
};

class LinearLearner {
 public:
  LinearLearner() = default;
  __host__ __device__ LinearLearner(const Extents& e, bool with_backward, Arena& arena)
      : features_(e.features),
        read_(e, e.features, e.features, with_backward, arena),
        z_(arena.rows(e.block_rows, e.features)),
        u_(arena.rows(e.block_rows, e.features)),
        n_(arena.rows(e.block_rows, e.features)),
        g_(arena.rows(e.block_rows, e.features)),
        rstd_(arena.vector(e.block_rows)),
        d_z_{} {
    if (with_backward) d_z_ = arena.rows(2 * e.block_rows, e.features);
  }

  /// f(x; W) before the norm.
  __attribute__((noinline)) __device__ void evaluate(const State& state, std::int64_t rows, Rows x,
                                                     Rows z) {
    apply_layer(rows, x, state.first, z, features_, features_);
  }

  /// The inner loss's gradient at `state`.
  __attribute__((noinline)) __device__ void gradients(const Block& block, const State& state) {
    evaluate(state, block.rows, block.k, z_);
    loss_gradient(block.norm, block.rows, z_, block.target, n_, rstd_, g_);
  }

  /// Z' of the rows `x_bar`, each with its own token's weights.
  __attribute__((noinline)) __device__ void read(const Block& block, const State& state, Rows x_bar,
                                                 Rows z_bar) {
    read_.forward(block, x_bar, block.k, state.first, g_, z_bar);
  }

  /// The state of the next mini-batch. `next` may be `state`.
  __device__ void update(const Block& block, const State& state, const State& next) {
    step(block, -block.last_scale(), state, next);
  }

  /// sums += l_j k_j^T G_j.
  __device__ void accumulate(const Block& block, const State& sums) {
    step(block, 1.0F, sums, sums);
  }

  /// `d_state` comes as the gradient of the next mini-batch's state and leaves as that of this one's; sums.d_lr must be
  /// zero.
  __attribute__((noinline)) __device__ void backward(const Block& block, const State& state,
                                                     Rows d_out, const State& d_state,
                                                     const BlockGradients& out,
                                                     const PairSums& sums) {
    const std::int64_t r = block.rows;
    const Rows d_z_bar = d_z_.from(r);  // [dZ; dZ'], as [k; q]
    read(block, state, block.q, z_);
    output_backward(block.norm, r, z_, d_out, d_z_bar, sums.norm);
    read_.backward(
        block, {block.q, block.k, g_, state.first, d_z_bar, d_state.first, out.d_q, out.d_k, d_z_},
        sums);
    loss_gradient_backward(block.norm, r, {n_, g_, block.target, rstd_}, d_z_, d_z_, out.d_v,
                           sums.norm);
    multiply({r, features_, features_}, plain(d_z_), transposed(state.first.w),
             [&](std::int64_t i, std::int64_t j, float sum) { out.d_k.at(i, j) += sum; });
    step_layer(2 * r, block.k, d_z_, d_state.first, d_state.first, features_, features_);
  }

 private:
  __device__ void step(const Block& block, float factor, const State& state, const State& next) {
    scale_step(block, factor, features_, g_, u_);
    step_layer(block.rows, block.k, u_, state.first, next.first, features_, features_);
  }

  std::int64_t features_;
  ReadStep read_;
  Rows z_, u_;
  Rows n_, g_;   // of the loss: the normalised Z, and G
  float* rstd_;  // [rows]
  Rows d_z_;
};

}  // namespace ttt::kernels::cuda::generic
