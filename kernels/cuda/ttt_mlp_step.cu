// The fused decode step of TTT-MLP: a cluster of four blocks a (batch, head) pair, each with F of the 4 F hidden units
// and so with F x F of each of W1, W2 and their sums in registers. As in kernels/cuda/ttt_linear_step.cu k W1, q W1 and
// q S1 are one pass; the second layer is read from registers three times: x2 W2, G2 W2^T and x2' (W2 - c S2'). Blocks
// exchange their parts of z2 and of z2', F floats each; the rest they compute each for itself.
//
// Bytes a step and pair, whatever the number of tokens in the call: W1, W2, S1, S2 are read and S1, S2 written, 96 F^2
// (384 KiB with head dim 64), at the mini-batch's end W1, W2 are written too, 128 F^2; vectors add about 1 %. The state
// as kernels/ttt.h keeps it allows no less.

#include "kernels/cuda/ttt_gelu.h"
#include "kernels/cuda/ttt_paths.h"
#include "kernels/cuda/ttt_step_tiles.h"

namespace ttt::kernels::cuda {
namespace {

using namespace step;  // NOLINT(google-build-using-namespace): its own device code

constexpr int kSlices = 4;
template <int F>
constexpr int kGroups = 16;

struct MlpPointers {
  float *w1, *b1, *w2, *b2;  // [B, H, F, 4F], [B, H, 1, 4F], [B, H, 4F, F], [B, H, 1, F]
};

template <typename T>
struct MlpStepArguments {
  Tokens<T> tokens;
  MlpPointers state, sums;
};

// Offsets in floats. First lie the sums of groups of rows, [3][kGroups][F].
template <int F>
struct MlpStepMemory {
  static constexpr int kAcross =
      F / 4 + 1;  // of the parts of G2 W2^T [F][F / 4]; odd: no bank conflicts
  static constexpr int kParts = 3 * kGroups<F> * F;       // [2][4][F]: of z2, z2', from each block
  static constexpr int kRows = kParts + 2 * kSlices * F;  // [2][3][F]: this token's, the next one's
  static constexpr int kX2 = kRows + 6 * F;
  static constexpr int kX2Bar = kX2 + F;
  static constexpr int kStep1 = kX2Bar + F;  // l G1
  static constexpr int kStep2 = kStep1 + F;  // l G2
  static constexpr int kG2 = kStep2 + F;
  static constexpr int kScore = kG2 + F;  // q k + 1
  static constexpr std::size_t kBytes = (kScore + 4) * 4;
  static_assert(F * kAcross <= 3 * kGroups<F> * F);
};

template <int F, typename T>
class MlpStep {
 public:
  __device__ MlpStep(const MlpStepArguments<T>& arguments, float* memory)
      : a_(arguments),
        shared_(memory),
        slice_(cluster_rank()),
        pair_(static_cast<int>(blockIdx.x) / kSlices),
        thread_(static_cast<int>(threadIdx.x)),
        norm_{arguments.tokens.norm_weight + pair_ % arguments.tokens.heads * F,
              arguments.tokens.norm_bias + pair_ % arguments.tokens.heads * F} {}

  __device__ void run() {
    load_state();
    cluster_barrier();  // every block has started before another stores into it
    for (int token = 0; token < a_.tokens.count; ++token) take_token(token);
    store_state();
  }

 private:
  using M = MlpStepMemory<F>;
  // Of the pair's W1, b1 and W2 what this block has.
  static constexpr int kWidth = kSlices * F;

  [[nodiscard]] __device__ std::int64_t w1_at() const {
    return std::int64_t{pair_} * F * kWidth + slice_ * F;
  }
  [[nodiscard]] __device__ std::int64_t b1_at() const {
    return std::int64_t{pair_} * kWidth + slice_ * F;
  }
  [[nodiscard]] __device__ std::int64_t w2_at() const {
    return std::int64_t{pair_} * kWidth * F + std::int64_t{slice_} * F * F;
  }
  [[nodiscard]] __device__ bool has_hidden_unit() const { return thread_ < F; }
  [[nodiscard]] __device__ bool is_row_warp() const { return thread_ < 32; }

  __device__ void load_state() {
    load(w1_, a_.state.w1 + w1_at(), kWidth);
    load(w1_sum_, a_.sums.w1 + w1_at(), kWidth);
    load(w2_, a_.state.w2 + w2_at(), F);
    load(w2_sum_, a_.sums.w2 + w2_at(), F);
    b1_ = has_hidden_unit() ? a_.state.b1[b1_at() + thread_] : 0.0F;
    b1_sum_ = has_hidden_unit() ? a_.sums.b1[b1_at() + thread_] : 0.0F;
    load_row<F>(b2_, a_.state.b2 + pair_ * F);
    load_row<F>(b2_sum_, a_.sums.b2 + pair_ * F);
  }

  __device__ void take_token(int token) {
    const int row = a_.tokens.row(pair_, token);
    const float* const rows = shared_ + M::kRows + token % 2 * 3 * F;
    rate_ = a_.tokens.token_lr[row];
    scale_ = a_.tokens.scale(token);
    load_token<F>(a_.tokens, row, shared_ + M::kRows + token % 2 * 3 * F);
    __syncthreads();
    first_layer(rows);
    put_product(shared_, shared_ + M::kX2, w2_);
    __syncthreads();
    send_product(0);
    cluster_barrier();
    if (is_row_warp()) output_gradient(rows);
    __syncthreads();
    hidden_gradient();
    add_outer_product(w1_sum_, rows, shared_ + M::kStep1);
    add_outer_product(w2_sum_, shared_ + M::kX2, shared_ + M::kStep2);
    Tile<F, kGroups<F>> read = w2_;
    add_scaled(read, -scale_, w2_sum_);
    put_product(shared_, shared_ + M::kX2Bar, read);
    __syncthreads();
    send_product(1);
    cluster_barrier();
    if (is_row_warp() && slice_ == 0) put_token(rows, row);
  }

  // x2 and its slope, and z1' as far as it does not need G1.
  __device__ void first_layer(const float* rows) {
    constexpr int kSize = kGroups<F> * F;
    put_product(shared_, rows, w1_);
    put_product(shared_ + kSize, rows + F, w1_);
    put_product(shared_ + 2 * kSize, rows + F, w1_sum_);
    __syncthreads();
    if (has_hidden_unit()) {
      const Gelu gelu = Gelu::at(product_at<F, kGroups<F>>(shared_, thread_) + b1_);
      slope_ = gelu.slope;
      shared_[M::kX2 + thread_] = gelu.value;
      z1_bar_ = product_at<F, kGroups<F>>(shared_ + kSize, thread_) + b1_ -
                scale_ * (product_at<F, kGroups<F>>(shared_ + 2 * kSize, thread_) + b1_sum_);
    }
    __syncthreads();
  }

  // The block's part of a product with the second layer to all blocks, a thread two columns and a block.
  __device__ void send_product(int which) {
    if (thread_ >= kSlices * F / 2) return;
    const int column = thread_ % (F / 2) * 2;
    float* const to = shared_ + M::kParts + (which * kSlices + slice_) * F + column;
    store_in_cluster(to, thread_ / (F / 2), product_at<F, kGroups<F>>(shared_, column),
                     product_at<F, kGroups<F>>(shared_, column + 1));
  }

  // The sum of all blocks' parts; by one warp.
  __device__ void load_sum(LaneRow<F>& z, int which) const {
    const float* const parts = shared_ + M::kParts + which * kSlices * F;
    for (int i = 0; i < kLaneFeatures<F>; ++i) {
      z[i] = 0;
      for (int slice = 0; slice < kSlices; ++slice) z[i] += parts[slice * F + feature_of<F>(i)];
    }
  }

  // G2 from z2; by one warp of every block.
  __device__ void output_gradient(const float* rows) {
    LaneRow<F> g2;
    load_sum(g2, 0);
    for (int i = 0; i < kLaneFeatures<F>; ++i) g2[i] += b2_[i];
    loss_gradient<F>(g2, norm_, rows);
    store_row<F>(shared_ + M::kG2, g2);
    for (int i = 0; i < kLaneFeatures<F>; ++i) {
      g2[i] *= rate_;
      b2_sum_[i] += g2[i];
    }
    store_row<F>(shared_ + M::kStep2, g2);
    const float score = own_score<F>(rows);
    if (thread_ == 0) shared_[M::kScore] = score;
  }

  // G1 = (G2 W2^T) phi'(z1), and with it z1' and x2'.
  __device__ void hidden_gradient() {
    const Place<F> at;
    const float4 g2 = *reinterpret_cast<const float4*>(shared_ + M::kG2 + at.column);
#pragma unroll
    for (int i = 0; i < Tile<F, kGroups<F>>::kRows; ++i) {
      const float4& w = w2_.x[i];
      shared_[(at.row + kGroups<F> * i) * M::kAcross + at.column / 4] =
          w.x * g2.x + w.y * g2.y + w.z * g2.z + w.w * g2.w;
    }
    __syncthreads();
    if (has_hidden_unit()) {
      float sum = 0;
      for (int i = 0; i < F / 4; ++i) sum += shared_[thread_ * M::kAcross + i];
      const float step = rate_ * sum * slope_;
      b1_sum_ += step;
      shared_[M::kStep1 + thread_] = step;
      const float z1_bar = z1_bar_ - scale_ * shared_[M::kScore] * step;
      shared_[M::kX2Bar + thread_] = Gelu::at(z1_bar).value;
    }
    __syncthreads();
  }

  __device__ void put_token(const float* rows, int row) {
    LaneRow<F> z;
    load_sum(z, 1);
    for (int i = 0; i < kLaneFeatures<F>; ++i) z[i] += b2_[i] - scale_ * b2_sum_[i];
    put_output<F>(a_.tokens.out + std::int64_t{row} * F, z, norm_, rows);
  }

  __device__ void store_state() {
    if (a_.tokens.ends_mini_batch) {
      add_scaled(w1_, -scale_, w1_sum_);
      add_scaled(w2_, -scale_, w2_sum_);
      store(w1_, a_.state.w1 + w1_at(), kWidth);
      store(w2_, a_.state.w2 + w2_at(), F);
      w1_sum_ = w2_sum_ = {};
      if (has_hidden_unit()) a_.state.b1[b1_at() + thread_] = b1_ - scale_ * b1_sum_;
      b1_sum_ = 0;
      for (int i = 0; i < kLaneFeatures<F>; ++i) {
        b2_[i] -= scale_ * b2_sum_[i];
        b2_sum_[i] = 0;
      }
    }
    store(w1_sum_, a_.sums.w1 + w1_at(), kWidth);
    store(w2_sum_, a_.sums.w2 + w2_at(), F);
    if (has_hidden_unit()) a_.sums.b1[b1_at() + thread_] = b1_sum_;
    if (!is_row_warp() || slice_ != 0) return;
    if (a_.tokens.ends_mini_batch) store_row<F>(a_.state.b2 + pair_ * F, b2_);
    store_row<F>(a_.sums.b2 + pair_ * F, b2_sum_);
  }

  const MlpStepArguments<T>& a_;
  float* shared_;
  int slice_;
  int pair_;
  int thread_;
  HeadNorm norm_;
  Tile<F, kGroups<F>> w1_, w1_sum_, w2_, w2_sum_;  // [F, own hidden units], [own hidden units, F]
  float b1_, b1_sum_;                              // of the thread's hidden unit, for F threads
  LaneRow<F> b2_, b2_sum_;                         // of one warp
  float rate_ = 0, scale_ = 0;                     // of the token
  float slope_ = 0, z1_bar_ = 0;                   // of the thread's hidden unit
};

template <int F, typename T>
__global__ void __launch_bounds__(kThreads<F, kGroups<F>>, F == 64 ? 2 : 1)
    mlp_step_kernel(MlpStepArguments<T> arguments) {
  MlpStep<F, T>(arguments, reinterpret_cast<float*>(dynamic_shared_memory())).run();
}

MlpPointers mlp_pointers(const TttState& state) {
  return {matrix_of(state.w1), state.b1.data<float>(), matrix_of(state.w2), state.b2.data<float>()};
}

}  // namespace

void fused_mlp_step(const TttInputs& inputs, const TttOptions& options, std::int64_t place,
                    const TttState& state, const TttState& sums, TensorView out, Stream& stream) {
  const auto blocks = static_cast<unsigned>(inputs.q.size(0) * inputs.q.size(2) * kSlices);
  fused::expect_countable_rows(inputs.q);
  visit_activation_type(inputs.q.dtype(), [&](auto zero) {
    using T = decltype(zero);
    fused::visit_head_dim(inputs.q.size(3), [&](auto head_dim) {
      constexpr int F = decltype(head_dim)::value;
      const MlpStepArguments<T> a{tokens_of<T>(inputs, options, place, out), mlp_pointers(state),
                                  mlp_pointers(sums)};
      launch(mlp_step_kernel<F, T>,
             {dim3(blocks), dim3(kThreads<F, kGroups<F>>), MlpStepMemory<F>::kBytes, kSlices},
             stream, a);
    });
  });
}

}  // namespace ttt::kernels::cuda
