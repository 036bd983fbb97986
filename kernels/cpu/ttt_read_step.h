#pragma once
// The read step of one layer of the inner model on one mini-batch, and its backward:
//
//   Z' = X' W + b + P G,  P = -(M * (X' X^T + 1)),  M_ij = c_i l_j for j <= i
//   W_next = W + X^T U,   U = -c_r diag(l) G
//
// Source: docs/numerics.md, "TTT".

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/ttt_block.h"

namespace ttt::kernels::ttt_cpu {

/// Sums over the mini-batches of a pair; d_lr is of the present mini-batch.
template <typename T>
struct PairSums {
  T* d_lr = nullptr;     // [rows], padded
  T* d_scale = nullptr;  // [K]
  NormSums<T> norm;
};

/// W_next = W + X^T U and likewise b. `next` may be `layer`.
template <typename T>
void step_layer(std::int64_t rows, std::int64_t inputs, std::int64_t outputs, bool bias, Rows<T> x,
                Rows<T> u, const Layer<T>& layer, const Layer<T>& next) {
  multiply<Left::kTransposed, T>(inputs, outputs, rows, x, u, layer.w, next.w);
  if (!bias) return;
  if (next.b != layer.b) std::copy_n(layer.b, simd::padded<T>(outputs), next.b);
  add_column_sums(rows, outputs, u, next.b);
}

/// U = -c_r diag(l) G.
template <typename T>
void scale_step(const Block<T>& block, std::int64_t outputs, Rows<T> g, Rows<T> u) {
  for (std::int64_t i = 0; i < block.rows; ++i) {
    const Vec<T> factor = simd::splat(-block.last_scale() * block.lr[i]);
    for (std::int64_t j = 0; j < outputs; j += kLanes<T>) {
      simd::store(u.row(i) + j, factor * simd::load(g.row(i) + j));
    }
  }
}

/// What the backward of a read step is given and where it puts its results.
template <typename T>
struct ReadBackward {
  Rows<T> x_bar, x, g, u;     // of the forward
  Rows<T> d_z_bar;            // dL/dZ'
  Layer<T> d_next;            // gradient of the updated layer
  Rows<T> w_t, d_next_w_t;    // W^T and (dL/dW_next)^T
  Rows<T> d_x_bar, d_x, d_g;  // out; d_x_bar and d_x start from the values found there
};

template <typename T>
class ReadStep {
 public:
  ReadStep(std::int64_t inputs, std::int64_t outputs, std::int64_t rows, Arena<T>& arena)
      : inputs_(inputs),
        outputs_(outputs),
        transposed_(arena.rows(std::max(inputs, outputs), rows)),
        scores_(arena.rows(rows, rows)),
        step_(arena.rows(rows, rows)),
        d_scores_(arena.rows(rows, rows)),
        update_read_(arena.rows(rows, outputs)) {}

  /// Z' into z_bar; keeps P and X' X^T for the backward.
  void forward(const Block<T>& block, Rows<T> x_bar, Rows<T> x, const Layer<T>& layer, Rows<T> g,
               Rows<T> z_bar) {
    const std::int64_t r = block.rows;
    transpose(r, inputs_, x, transposed_);
    multiply<Left::kPlain, T>(r, r, inputs_, x_bar, transposed_, {}, scores_);
    block.ahead.ask();
    const T one = block.bias ? T(1) : T(0);
    for_each_score(r, [&](std::int64_t i, std::int64_t j, auto lower) {
      const Vec<T> m = simd::load(block.lr + j) * -block.scale[i];
      const Vec<T> score = simd::load(scores_.row(i) + j) + one;
      simd::store(scores_.row(i) + j, score);
      simd::store(step_.row(i) + j, lower(m * score));
    });
    multiply<Left::kPlain, T>(r, outputs_, inputs_, x_bar, layer.w, Start<T>(layer.b, 0), z_bar);
    block.ahead.ask();
    multiply<Left::kPlain, T>(r, outputs_, r, step_, g, z_bar, z_bar, true);
  }

  /// After `forward` on the same mini-batch. The gradient of the layer itself is the caller's.
  void backward(const Block<T>& block, const ReadBackward<T>& p, const PairSums<T>& sums) {
    const std::int64_t r = block.rows;
    transpose(r, outputs_, p.g, transposed_);
    multiply<Left::kPlain, T>(r, r, outputs_, p.d_z_bar, transposed_, {}, d_scores_);
    block.ahead.ask();
    for (std::int64_t i = 0; i < r; ++i) step_size_row_backward(block, i, sums);
    multiply<Left::kPlain, T>(r, outputs_, inputs_, p.x, p.d_next.w, Start<T>(p.d_next.b, 0),
                              update_read_);
    block.ahead.ask();
    update_backward(block, p, sums);
    multiply<Left::kTransposed, T>(r, outputs_, r, step_, p.d_z_bar, p.d_g, p.d_g);
    multiply<Left::kPlain, T>(r, inputs_, r, d_scores_, p.x, p.d_x_bar, p.d_x_bar, true);
    multiply<Left::kPlain, T>(r, inputs_, outputs_, p.d_z_bar, p.w_t, p.d_x_bar, p.d_x_bar);
    block.ahead.ask();
    multiply<Left::kTransposed, T>(r, inputs_, r, d_scores_, p.x_bar, p.d_x, p.d_x);
    multiply<Left::kPlain, T>(r, inputs_, outputs_, p.u, p.d_next_w_t, p.d_x, p.d_x);
  }

 private:
  /// f(row, column, lower) with lower(x) keeping the lanes with column <= row.
  template <typename F>
  static void for_each_score(std::int64_t rows, F&& f) {
    simd::Lanes<T> lane{};
    for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
    using Index = std::remove_cvref_t<decltype(lane[0])>;
    for_each_vector<T>(rows, rows, [&](std::int64_t i, std::int64_t j) {
      f(i, j, [&](Vec<T> x) { return lane <= static_cast<Index>(i - j) ? x : Vec<T>{}; });
    });
  }

  /// Row i of dL/dM into d_lr and d_scale; turns row i of dZ' G^T into dL/d(X' X^T).
  void step_size_row_backward(const Block<T>& block, std::int64_t i, const PairSums<T>& sums) {
    Vec<T> d_scale{};
    simd::Lanes<T> lane{};
    for (int n = 0; n < kLanes<T>; ++n) lane[n] = n;
    using Index = std::remove_cvref_t<decltype(lane[0])>;
    for (std::int64_t j = 0; j < block.rows; j += kLanes<T>) {
      const auto lower = lane <= static_cast<Index>(i - j);
      const Vec<T> lr = simd::load(block.lr + j);
      const Vec<T> d = lower ? -simd::load(d_scores_.row(i) + j) : Vec<T>{};
      const Vec<T> d_m = d * simd::load(scores_.row(i) + j);
      simd::store(sums.d_lr + j,
                  simd::fma(d_m, simd::splat(block.scale[i]), simd::load(sums.d_lr + j)));
      d_scale = simd::fma(d_m, lr, d_scale);
      simd::store(d_scores_.row(i) + j, d * lr * block.scale[i]);
    }
    sums.d_scale[i] += simd::sum<T>(d_scale);
  }

  /// With R = X dW_next + db_next: the last row of dL/dM gains -R_j . G_j, and d_g starts as -c_r l_j R_j.
  void update_backward(const Block<T>& block, const ReadBackward<T>& p, const PairSums<T>& sums) {
    const T last = block.last_scale();
    for (std::int64_t i = 0; i < block.rows; ++i) {
      const Vec<T> factor = simd::splat(-last * block.lr[i]);
      Vec<T> product{};
      for (std::int64_t j = 0; j < outputs_; j += kLanes<T>) {
        const Vec<T> read = simd::load(update_read_.row(i) + j);
        product = simd::fma(read, simd::load(p.g.row(i) + j), product);
        simd::store(p.d_g.row(i) + j, factor * read);
      }
      const T d_m = -simd::sum<T>(product);
      sums.d_lr[i] += d_m * last;
      sums.d_scale[block.rows - 1] += d_m * block.lr[i];
    }
  }

  std::int64_t inputs_, outputs_;
  Rows<T> transposed_, scores_, step_, d_scores_, update_read_;
};

}  // namespace ttt::kernels::ttt_cpu
