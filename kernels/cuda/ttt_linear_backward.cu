// The fused backward of TTT-Linear: one block walks the mini-batches of a (batch, head) pair from the last to the first,
// with the state W, b and its gradient in fp32 registers. Equations: docs/numerics.md, "TTT"; layouts:
// kernels/cuda/ttt_fused.h; names: kernels/reference/ttt_inner.h.
//
// The walk is reversible: a mini-batch's start is its end plus c_r k^T (l G), of which forward saved the exact bf16
// operand l G. Nothing of the forward is run again but Z, Z' and the scores of one mini-batch; no states are stored but
// an fp32 one every 128 mini-batches, which ends what the rounding of additions has summed to.
//
// Threads meet three times a mini-batch:
//   restore W; Z, Z', U = k dW' + db'; bf16 copies of W, dW' for sums over out-features     | sums of LayerNorms
//   dZ' through the output's LN; d(l G) = -(c (q k^T + 1))^T dZ' - c_r U                    | sums of d(l G), dZ' tile
//   through G: dZ, d target, d rate; dW = dW' + q^T dZ' + k^T dZ                            | dZ tile, 16 x 16 fragments
//   dq, dk: not part of the recurrence
// The matrices of tokens by tokens are one warp's work, in turn: the gradient of this mini-batch's scores and the scores
// of the next. d_q, d_k, d_v lie in the input tiles' own columns, whose last reader their warp is, until they leave.
//
// W is centred (kernels/cuda/ttt_fused.h), so is dW' here: a mean over out-features that d_final has goes straight
// through to d_initial, as the state's does from initial to final; all else that is added to dW has none.

#include "kernels/cuda/ttt_linear_backward.h"
#include "kernels/cuda/ttt_partials.h"
#include "kernels/cuda/ttt_paths.h"

namespace ttt::kernels::cuda {
namespace {

// NOLINTBEGIN(google-build-using-namespace): its own device code
using namespace fused;
using namespace fused::linear_backward;
// NOLINTEND(google-build-using-namespace)

__device__ __forceinline__ float warp_sum(float value) {
  for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(kAllLanes, value, mask);
  return value;
}

template <int F>
__device__ __forceinline__ Walk<F> start_walk(const BackwardArguments& a, std::byte* shared,
                                              const PairRows& rows) {
  using Memory = BackwardMemory<F>;
  const std::int64_t pair = blockIdx.x;
  const std::int64_t head = pair % a.in.heads;
  Walk<F> walk{};
  const int last_slot = (rows.num_mini_batches() - 1) / kCheckpointEvery;
  load_checkpoint(walk.state, a.checkpoints + checkpoint_offset<F>(rows, last_slot));
  if (a.d_final_w != nullptr) {
    load_state(walk.d_state, a.d_final_w + pair * F * F, a.d_final_b + pair * F);
  }
  centre(walk.d_state, reinterpret_cast<float*>(shared + Memory::kSums),
         reinterpret_cast<float*>(shared + Memory::kMeans));
  walk.norm = load_norm<F>(a.in.norm_weight + head * F, a.in.norm_bias + head * F);
  float square = 0;
  for (int f = this_lane().lane; f < F; f += 32) {
    square += a.in.norm_weight[head * F + f] * a.in.norm_weight[head * F + f];
  }
  square = warp_sum(square);
  if (threadIdx.x == 0) *reinterpret_cast<float*>(shared + Memory::kGammaSquare) = square / F;
  if (const int f = static_cast<int>(threadIdx.x); f < F) {
    reinterpret_cast<float*>(shared + Memory::kBeta)[f] = a.in.norm_bias[head * F + f];
  }
  return walk;
}

// This pair's parts of d_token_scale, d_norm_weight, d_norm_bias. d_token_scale is the sum of what Z' gave, the part of
// c_16 that the steps after whole mini-batches gave, and that of the step after a short last one, of `last_count` tokens.
template <int F>
__device__ __forceinline__ void store_partials(const Walk<F>& walk, const std::byte* shared,
                                               int last_count, float* partials) {
  constexpr int kWarps = Layout<F>::kWarps;
  const Lane at = this_lane();
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float weight = walk.d_norm_weight[j][e], bias = walk.d_norm_bias[j][e];
      for (int mask = 4; mask < 32; mask *= 2) {
        weight += __shfl_xor_sync(kAllLanes, weight, mask);
        bias += __shfl_xor_sync(kAllLanes, bias, mask);
      }
      const int feature = 16 * at.warp + 8 * j + 2 * at.t + e;
      if (at.g == 0) {
        partials[kTokens + feature] = weight;
        partials[kTokens + F + feature] = bias;
      }
    }
  }
  const int token = static_cast<int>(threadIdx.x);
  if (token >= kTokens) return;
  const auto* const d_scale = reinterpret_cast<const float2*>(shared + BackwardMemory<F>::kDScale);
  const auto* const d_last =
      reinterpret_cast<const float*>(shared + BackwardMemory<F>::kDLastScale);
  float sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    for (int t = 0; t < 4; ++t) {
      const float2 part = d_scale[32 * warp + 4 * (token % 8) + t];
      sum += token < 8 ? part.x : part.y;
    }
    if (token == kTokens - 1) sum += d_last[warp];
    if (token == last_count - 1) sum += d_last[kWarps + warp];
  }
  partials[token] = sum;
}

// Rows that warps have put into an iteration's tiles leave a barrier later, whole.
template <int F>
__device__ __forceinline__ void write_rows(const BackwardArguments& a, const PairRows& rows,
                                           const Chunk<F>& chunk, const BackwardStage<F>& stage,
                                           int m) {
  const int count = rows.count(m);
  write_tile<F>(a.d_q, stage.d_out, rows, chunk, m, count);
  write_tile<F>(a.d_k, stage.k, rows, chunk, m, count);
  write_tile<F>(a.d_v, stage.v, rows, chunk, m, count);
}

template <int F>
__global__ void __launch_bounds__(Layout<F>::kThreads, F == 64 ? 2 : 1)
    linear_backward_kernel(BackwardArguments a) {
  using Memory = BackwardMemory<F>;
  std::byte* const shared = dynamic_shared_memory();
  float* const sums = reinterpret_cast<float*>(shared + Memory::kSums);
  float* const step_sums = reinterpret_cast<float*>(shared + Memory::kStepSumsAt);
  float* const scales = reinterpret_cast<float*>(shared + Memory::kScales);
  float& gamma_square = *reinterpret_cast<float*>(shared + Memory::kGammaSquare);
  std::byte* const steps = shared + Memory::kSteps;
  const TokenTerms terms(shared + Memory::kTerms);
  const PairRows rows = rows_of_pair(blockIdx.x, a.in);
  const Chunk<F> chunk;
  const int num_mini_batches = rows.num_mini_batches();

  for (int i = 0; i < kStages - 1; ++i) load_stage<F>(a, rows, chunk, shared, i);
  Walk<F> walk = start_walk<F>(a, shared, rows);
  const Lane at = this_lane();
  float* const d_last_scale = reinterpret_cast<float*>(shared + Memory::kDLastScale) + at.warp;
  if (at.lane == 0) d_last_scale[Layout<F>::kWarps] = 0;
  reinterpret_cast<float2*>(shared + Memory::kDScale)[threadIdx.x] = float2{0, 0};
  copy_scales(scales, a.in.token_scale);
  copy_async_wait<kStages - 2>();
  __syncthreads();  // stage 0 and the scales are there
  if (at.warp == 0) put_steps<F>(shared, 0, scales);
  __syncthreads();  // and its step matrix

#pragma unroll 1
  for (int i = 0; i < num_mini_batches; ++i) {
    const int m = num_mini_batches - 1 - i;
    const BackwardStage<F> stage(shared, i);
    std::byte* const w_copy = shared + Memory::kCopies + i % 2 * (2 * Memory::kCopyBytes);
    std::byte* const d_w_copy = w_copy + Memory::kCopyBytes;
    const float last_scale = scales[rows.count(m) - 1];
    Values x;
    {
      std::uint32_t step_t[4];
      load_transposed<F>(step_t, stage.step, at.warp);
      step_state(walk.state, stage.step, step_t, stage.k, last_scale);
      if (m > 0 && m % kCheckpointEvery == 0) {
        load_checkpoint(walk.state,
                        a.checkpoints + checkpoint_offset<F>(rows, m / kCheckpointEvery - 1));
      }
      products(stage, walk, w_copy, d_w_copy, x);
      read_and_sum(stage, walk, shared, step_t, sums, x);
    }
    copy_async_wait<kStages - 3>();
    __syncthreads();  // sums, copies of W and dW', stage i + 1 are there; stage i - 1 is free, but for what it wrote
    if (i > 0) write_rows<F>(a, rows, chunk, BackwardStage<F>(shared, i - 1), m + 1);
    load_stage<F>(a, rows, chunk, shared, i + kStages - 1);

    float mean[kBackwardSums];
    means_of_token<F>(mean, sums);
    const TokenNorm norm(mean);
    const float bar = norm_rstd(mean[kBarBar]);
    terms.put({bar, mean[kH] * bar, mean[kHBar] * bar * bar, norm.rstd}, {});
    output_norm_backward(terms, shared + Memory::kDZBar, walk, x);
    step_backward(stage, terms, steps + Layout<F>::kFragmentBytes, last_scale, step_sums, walk, x);
    __syncthreads();  // sums of d(l G) and dZ' are there

    const int token = token_of_lane();
    const float d_rate =
        put_step_terms<F>(terms, step_sums, norm, stage.rates[token], gamma_square);
    if (at.warp == 0 && has_first_half() && token < rows.count(m)) {
      a.d_token_lr[rows.row(m * kTokens + token)] = d_rate;
    }
    std::uint32_t d_z_t[4];
    loss_gradient_backward<F>(terms, shared + Memory::kDZ, walk, x, d_z_t);
    store_rows<F>(stage.v, at.warp, x.d_target);
    add_to_state_gradient(stage, shared, x.d_z_bar_t, d_z_t, walk.d_state);
    if (at.warp == i % Layout<F>::kWarps) {
      put_scores_gradient<F>(stage, shared, i, scales);
    }
    if (m > 0 && at.warp == (i + 1) % Layout<F>::kWarps) put_steps<F>(shared, i + 1, scales);
    __syncthreads();  // dZ, dS and the next step matrix are there

    std::uint32_t d_q[4], d_k[4];
    query_and_key_backward(stage, shared, w_copy, d_w_copy, last_scale, x.d_target, d_q, d_k);
    __syncwarp();
    store_rows<F>(stage.d_out, at.warp, d_q);
    store_rows<F>(stage.k, at.warp, d_k);
    if (rows.count(m) < kTokens) {  // the last mini-batch: its step has its own c_r
      const float sum = warp_sum(walk.d_last_scale);
      if (at.lane == 0) d_last_scale[Layout<F>::kWarps] = sum;
      walk.d_last_scale = 0;
    }
  }

  const std::int64_t pair = blockIdx.x;
  store_state(walk.d_state, reinterpret_cast<float*>(shared + Memory::kMeans),
              a.d_initial_w + pair * F * F, a.d_initial_b + pair * F);
  if (a.restored != nullptr) {
    store_checkpoint(walk.state, a.restored + pair * Layout<F>::kStateFloats);
  }
  const float sum = warp_sum(walk.d_last_scale);
  if (at.lane == 0) d_last_scale[0] = sum;
  __syncthreads();
  write_rows<F>(a, rows, chunk, BackwardStage<F>(shared, num_mini_batches - 1), 0);
  store_partials(walk, shared, rows.count(num_mini_batches - 1),
                 a.partials + pair * (kTokens + 2 * F));
}

BackwardArguments backward_arguments(const TttInputs& inputs, const TttSaved& saved,
                                     TensorView d_out, const TttState& d_final,
                                     const TttInputGradients& gradients,
                                     const TttState& d_initial) {
  BackwardArguments a{};
  a.in = pointers(inputs);
  a.step_gradients = saved.step_gradients.data<BFloat16>();
  a.d_out = d_out.data<BFloat16>();
  a.checkpoints = saved.checkpoints.data<float>();
  a.d_final_w = floats_or_null(d_final.w1);
  a.d_final_b = floats_or_null(d_final.b1);
  a.d_q = gradients.d_q.data<BFloat16>();
  a.d_k = gradients.d_k.data<BFloat16>();
  a.d_v = gradients.d_v.data<BFloat16>();
  a.d_token_lr = gradients.d_token_lr.data<float>();
  a.d_initial_w = d_initial.w1.data<float>();
  a.d_initial_b = d_initial.b1.data<float>();
  return a;
}

}  // namespace

// Also says where the walk ended: `restored` [B, H, F F + F] in the order of TttSaved::checkpoints, or empty. For the
// test of what reversing costs.
void restoring_linear_backward(const TttInputs& inputs, const TttSaved& saved, TensorView d_out,
                               const TttState& d_final, const TttInputGradients& gradients,
                               const TttState& d_initial, TensorView restored, Stream& stream) {
  const std::int64_t batch = inputs.q.size(0);
  const std::int64_t heads = inputs.q.size(2);
  expect_countable_rows(inputs.q);
  visit_head_dim(inputs.q.size(3), [&](auto head_dim) {
    constexpr int F = decltype(head_dim)::value;
    static_assert(BackwardMemory<F>::kBytes == fused_shared_bytes(InnerModel::kLinear, F));
    expect_shape("saved.step_gradients", saved.step_gradients, inputs.q.shape());
    expect_shape(
        "saved.checkpoints", saved.checkpoints,
        {batch, heads, num_checkpoints(inputs.q.size(1)), std::int64_t{Layout<F>::kStateFloats}});
    const Tensor partials({batch, heads, 1, partial_size(F)}, DType::kF32);
    BackwardArguments a = backward_arguments(inputs, saved, d_out, d_final, gradients, d_initial);
    a.partials = partials.data<float>();
    a.restored = restored.empty() ? nullptr : restored.data<float>();
    launch(linear_backward_kernel<F>,
           {dim3(static_cast<unsigned>(batch * heads)), dim3(Layout<F>::kThreads),
            static_cast<std::size_t>(BackwardMemory<F>::kBytes)},
           stream, a);
    add_partials(partials, gradients, stream);
  });
}

void fused_linear_backward(const TttInputs& inputs, const TttState& /*initial*/,
                           const TttSaved& saved, TensorView d_out, const TttState& d_final,
                           const TttInputGradients& gradients, const TttState& d_initial,
                           Stream& stream) {
  restoring_linear_backward(inputs, saved, d_out, d_final, gradients, d_initial, {}, stream);
}

}  // namespace ttt::kernels::cuda
