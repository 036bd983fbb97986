// The fused decode step of TTT-Linear: one block a (batch, head) pair, W and the sums in its registers.
//
// With S, s the sums of the mini-batch's earlier tokens, y = k W + b and G its inner gradient,
//   z' = q (W - c S') + b - c s' = q W + b - c (q S + s + (q k + 1) l G),   S' = S + k^T l G, s' = s + l G,
// so that k W, q W and q S come from one pass over W and S, before G is known.
//
// Bytes a step and pair, whatever the number of tokens in the call: W and S are read and S is written, 12 F^2 (48 KiB
// with head dim 64), at the mini-batch's end W is written too, 16 F^2; vectors add about 1 %. The state as kernels/ttt.h
// keeps it allows no less.

#include "kernels/cuda/ttt_paths.h"
#include "kernels/cuda/ttt_step_tiles.h"

namespace ttt::kernels::cuda {
namespace {

using namespace step;  // NOLINT(google-build-using-namespace): its own device code

// With head dim 96 few threads have many registers each, of which W and S take 96: as 12 warps a block, two to a
// multiprocessor, they would spill.
template <int F>
constexpr int kGroups = F == 64 ? 16 : 8;

template <typename T>
struct LinearStepArguments {
  Tokens<T> tokens;
  float *w, *b;          // [B, H, F, F], [B, H, 1, F]
  float *w_sum, *b_sum;  // the same
};

// Offsets in floats. First lie the sums of groups of rows, [3][kGroups][F].
template <int F>
struct LinearStepMemory {
  static constexpr int kReads = 3 * kGroups<F> * F;  // z, z'
  static constexpr int kStep = kReads + 2 * F;       // l G
  static constexpr int kHead = kStep + F;            // gamma, beta, b, s
  static constexpr int kRows = kHead + 4 * F;        // [2][3][F]: this token's, the next one's
  static constexpr std::size_t kBytes = (kRows + 6 * F) * 4;
};

// What one warp reads and writes of the pair.
template <int F>
struct HeadRows {
  HeadNorm norm;
  float *b, *b_sum;
  __device__ explicit HeadRows(float* shared)
      : norm{shared, shared + F}, b(shared + 2 * F), b_sum(shared + 3 * F) {}
};

template <int F, typename T>
__device__ __forceinline__ void load_head(const LinearStepArguments<T>& a, int pair, float* to) {
  const int head = pair % a.tokens.heads;
  if (const int i = static_cast<int>(threadIdx.x); i < F) {
    to[i] = a.tokens.norm_weight[head * F + i];
    to[F + i] = a.tokens.norm_bias[head * F + i];
    to[2 * F + i] = a.b[pair * F + i];
    to[3 * F + i] = a.b_sum[pair * F + i];
  }
}

// z and z' without the token's own step, from the sums over row groups, a thread a feature.
template <int F>
__device__ __forceinline__ void put_reads(const float* partials, const HeadRows<F>& head,
                                          float scale, float* to) {
  const int thread = static_cast<int>(threadIdx.x);
  const int f = thread % F;
  constexpr int kSize = kGroups<F> * F;
  if (thread < F) {
    to[thread] = product_at<F, kGroups<F>>(partials, f) + head.b[f];
  } else if (thread < 2 * F) {
    const float from_sums = product_at<F, kGroups<F>>(partials + 2 * kSize, f) + head.b_sum[f];
    to[thread] = product_at<F, kGroups<F>>(partials + kSize, f) + head.b[f] - scale * from_sums;
  }
}

// From `reads` to l G and the output; by one warp.
template <int F, typename T>
__device__ __forceinline__ void take_token(const Tokens<T>& tokens, int row, float scale,
                                           const HeadNorm& norm, const float* rows,
                                           const float* reads, float* step_to) {
  LaneRow<F> step, z_bar;
  load_row<F>(step, reads);
  loss_gradient<F>(step, norm, rows);
  const float rate = tokens.token_lr[row];
  const float own = scale * own_score<F>(rows);
  load_row<F>(z_bar, reads + F);
  for (int i = 0; i < kLaneFeatures<F>; ++i) {
    step[i] *= rate;
    z_bar[i] -= own * step[i];
  }
  store_row<F>(step_to, step);
  put_output<F>(tokens.out + std::int64_t{row} * F, z_bar, norm, rows);
}

template <int F, typename T>
__global__ void __launch_bounds__(kThreads<F, kGroups<F>>, F == 64 ? 3 : 2)
    linear_step_kernel(LinearStepArguments<T> a) {
  using M = LinearStepMemory<F>;
  auto* const shared = reinterpret_cast<float*>(dynamic_shared_memory());
  const auto pair = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t matrix = std::int64_t{pair} * F * F;
  const HeadRows<F> head(shared + M::kHead);
  Tile<F, kGroups<F>> w, sum;
  load(w, a.w + matrix, F);
  load(sum, a.w_sum + matrix, F);
  load_head<F>(a, pair, shared + M::kHead);

#pragma unroll 1
  for (int token = 0; token < a.tokens.count; ++token) {
    const int row = a.tokens.row(pair, token);
    const float scale = a.tokens.scale(token);
    float* const rows = shared + M::kRows + token % 2 * 3 * F;
    load_token<F>(a.tokens, row, rows);
    __syncthreads();
    put_product(shared, rows, w);
    put_product(shared + kGroups<F> * F, rows + F, w);
    put_product(shared + 2 * kGroups<F> * F, rows + F, sum);
    __syncthreads();
    put_reads<F>(shared, head, scale, shared + M::kReads);
    __syncthreads();
    if (thread < 32) {
      take_token<F>(a.tokens, row, scale, head.norm, rows, shared + M::kReads, shared + M::kStep);
    }
    __syncthreads();
    add_outer_product(sum, rows, shared + M::kStep);
    if (thread < F) head.b_sum[thread] += shared[M::kStep + thread];
  }

  float b_sum = thread < F ? head.b_sum[thread] : 0.0F;
  if (a.tokens.ends_mini_batch) {
    const float scale = a.tokens.scale(a.tokens.count - 1);
    add_scaled(w, -scale, sum);
    store(w, a.w + matrix, F);
    if (thread < F) a.b[pair * F + thread] = head.b[thread] - scale * b_sum;
    sum = {};
    b_sum = 0;
  }
  store(sum, a.w_sum + matrix, F);
  if (thread < F) a.b_sum[pair * F + thread] = b_sum;
}

}  // namespace

void fused_linear_step(const TttInputs& inputs, const TttOptions& options, std::int64_t place,
                       const TttState& state, const TttState& sums, TensorView out,
                       Stream& stream) {
  const auto pairs = static_cast<unsigned>(inputs.q.size(0) * inputs.q.size(2));
  fused::expect_countable_rows(inputs.q);
  visit_activation_type(inputs.q.dtype(), [&](auto zero) {
    using T = decltype(zero);
    fused::visit_head_dim(inputs.q.size(3), [&](auto head_dim) {
      constexpr int F = decltype(head_dim)::value;
      const LinearStepArguments<T> a{tokens_of<T>(inputs, options, place, out), matrix_of(state.w1),
                                     state.b1.data<float>(), matrix_of(sums.w1),
                                     sums.b1.data<float>()};
      launch(linear_step_kernel<F, T>,
             {dim3(pairs), dim3(kThreads<F, kGroups<F>>), LinearStepMemory<F>::kBytes}, stream, a);
    });
  });
}

}  // namespace ttt::kernels::cuda
