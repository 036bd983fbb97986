// The fused forward of TTT-Linear: kernels/ttt.h's equations with the state W, b of a (batch, head) pair in the
// registers of one block, fp32. Layouts: kernels/cuda/ttt_fused.h.
//
// Threads meet once a mini-batch. LayerNorm's sums over features, which all warps need, leave together for Z of this
// mini-batch and for Z' of the one before, whose output is therefore written one mini-batch late; the same barrier hands
// over the ring of input tiles.

#include "kernels/cuda/ttt_linear_state.h"
#include "kernels/cuda/ttt_paths.h"

namespace ttt::kernels::cuda {
namespace {

using namespace fused;  // NOLINT(google-build-using-namespace): its own device code

constexpr int kStages = 5;  // m - 1, whose q its output still needs, to m + 3
constexpr int kAhead = 3;

struct ForwardArguments {
  Inputs in;
  const float *initial_w, *initial_b;  // [B, H, F, F], [B, H, 1, F]
  BFloat16* out;                       // [B, T, H, F]
  BFloat16* step_gradients;            // [B, T, H, F], or null
  float *final_w, *final_b;            // as initial, or null; may alias it
  float* checkpoints;                  // [B, H, num_checkpoints, F F + F], or null
};

template <int F>
struct ForwardMemory {
  using L = Layout<F>;
  static constexpr int kStageBytes = 3 * L::kTileBytes + L::kRateBytes;
  static constexpr int kSumsBytes = L::kWarps * kTokens * kForwardSums * 4;
  static constexpr int kSums =
      kStages * kStageBytes;  // two buffers: slow warps still read the other
  static constexpr int kScales = kSums + 2 * kSumsBytes;
  static constexpr int kMeans = kScales + L::kScalesBytes;
  static constexpr int kBytes = kMeans + L::kMeansBytes;
  static_assert(kSumsBytes >= (F + 1) * L::kWarps * 4, "centre uses them first");
};

template <int F>
struct ForwardStage {
  std::byte *k, *q, *v;
  float* rates;

  __device__ ForwardStage(std::byte* shared, int m)
      : k(shared + m % kStages * ForwardMemory<F>::kStageBytes),
        q(k + Layout<F>::kTileBytes),
        v(q + Layout<F>::kTileBytes),
        rates(reinterpret_cast<float*>(v + Layout<F>::kTileBytes)) {}
};

template <int F>
__device__ __forceinline__ float* sums_buffer(std::byte* shared, int m) {
  return reinterpret_cast<float*>(shared + ForwardMemory<F>::kSums +
                                  m % 2 * ForwardMemory<F>::kSumsBytes);
}

// Asks for mini-batch m's rows. Past the end too it ends a group: waits count groups.
template <int F>
__device__ __forceinline__ void load_stage(const ForwardArguments& a, const PairRows& rows,
                                           std::byte* shared, int m) {
  if (m < rows.num_mini_batches()) {
    const ForwardStage<F> stage(shared, m);
    const std::int64_t first = rows.row(m * kTokens) * F;
    const std::int64_t stride = static_cast<std::int64_t>(a.in.heads) * F;
    const int count = rows.count(m);
    copy_tile_async<F>(stage.k, a.in.k + first, stride, count);
    copy_tile_async<F>(stage.q, a.in.q + first, stride, count);
    copy_tile_async<F>(stage.v, a.in.v + first, stride, count);
    copy_rates_async(stage.rates, a.in.token_lr, rows, m);
  }
  copy_async_commit();
}

// Z = k W + b, the part q W + b of Z', and the step matrix -(c_i (q_i k_j + 1)), j <= i, whose rates l are in l G.
template <int F>
__device__ __forceinline__ void products(const ForwardStage<F>& stage, const LinearState<F>& state,
                                         const float* scales, float (&z)[2][4],
                                         float (&z_bar)[2][4], std::uint32_t (&steps)[4]) {
  float scores[2][4] = {};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) z[j][r] = z_bar[j][r] = state.b[j][r & 1];
  }
#pragma unroll
  for (int i = 0; i < F / 16; ++i) {
    std::uint32_t k[4], q[4];
    load_rows<F>(k, stage.k, i);
    load_rows<F>(q, stage.q, i);
    mma_m16n8k16(scores[0], q, k[0], k[2]);
    mma_m16n8k16(scores[1], q, k[1], k[3]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const uint2 w = operand(state.w, i, j);
      mma_m16n8k16(z[j], k, w.x, w.y);
      mma_m16n8k16(z_bar[j], q, w.x, w.y);
    }
  }
  mask_scores(scores);
  pack_steps(steps, scores, scales);
}

// l G at the warp's own features: with x = (z - mean) rstd and e = a x + p, G = (e - mean(e) - x mean(e x)) rstd.
template <int F>
__device__ __forceinline__ void scaled_gradients(std::uint32_t (&step)[4], const float* sums,
                                                 const float* rates, const float (&z)[2][4],
                                                 const float (&offset)[2][4],
                                                 const HeadNorm& norm) {
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    float mean[kForwardSums];
    mean_over_features<F>(mean, sums, k);
    const TokenNorm token = token_norm(mean, norm);
    const float outer = token.rstd * rates[this_lane().g + 8 * k];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float g[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float x = (z[j][2 * k + e] - token.mean) * token.rstd;
        const float p = norm.weight[j][e] * offset[j][2 * k + e];
        g[e] = ((norm.square(j, e) - token.mean_ex) * x + p - token.mean_e) * outer;
      }
      step[2 * j + k] = pack_bf16(g[0], g[1]);
    }
  }
}

// out = q + LN(Z') of mini-batch m, whose tiles are still there.
template <int F>
__device__ __forceinline__ void write_output(const ForwardArguments& a, const PairRows& rows,
                                             std::byte* shared, const float* sums, int m,
                                             const float (&z_bar)[2][4], const HeadNorm& norm) {
  std::uint32_t q[4], out[4];
  load_rows<F>(q, ForwardStage<F>(shared, m).q, this_lane().warp);
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    float mean[kForwardSums];
    mean_over_features<F>(mean, sums, k);
    const float rstd = rsqrtf(mean[kBarBar] - mean[kBar] * mean[kBar] + kNormEpsilon);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float y[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int i = 2 * k + e;
        y[e] = unpacked(q, j, i) + norm.bias[j][e] +
               norm.weight[j][e] * (z_bar[j][i] - mean[kBar]) * rstd;
      }
      out[2 * j + k] = pack_bf16(y[0], y[1]);
    }
  }
  store_own<F>(a.out, rows, m, out);
}

template <int F>
__global__ void __launch_bounds__(Layout<F>::kThreads, F == 64 ? 4 : 2)
    linear_forward_kernel(ForwardArguments a) {
  using Memory = ForwardMemory<F>;
  std::byte* const shared = dynamic_shared_memory();
  float* const scales = reinterpret_cast<float*>(shared + Memory::kScales);
  float* const means = reinterpret_cast<float*>(shared + Memory::kMeans);
  const PairRows rows = rows_of_pair(blockIdx.x, a.in);
  const int num_mini_batches = rows.num_mini_batches();
  for (int m = 0; m < kAhead; ++m) load_stage<F>(a, rows, shared, m);

  const std::int64_t pair = blockIdx.x;
  const std::int64_t head = pair % a.in.heads;
  LinearState<F> state;
  load_state(state, a.initial_w + pair * F * F, a.initial_b + pair * F);
  centre(state, reinterpret_cast<float*>(shared + Memory::kSums), means);
  const HeadNorm norm = load_norm<F>(a.in.norm_weight + head * F, a.in.norm_bias + head * F);
  copy_scales(scales, a.in.token_scale);
  copy_async_wait<kAhead - 1>();
  __syncthreads();  // stage 0 and the scales are there

  float last_z_bar[2][4] = {};  // of the mini-batch before
#pragma unroll 1
  for (int m = 0; m < num_mini_batches; ++m) {
    if (a.checkpoints != nullptr && m > 0 && m % kCheckpointEvery == 0) {
      const int slot = m / kCheckpointEvery - 1;
      store_checkpoint(state, a.checkpoints + checkpoint_offset<F>(rows, slot));
    }
    const ForwardStage<F> stage(shared, m);
    float* const buffer = sums_buffer<F>(shared, m);
    float z[2][4], z_bar[2][4], offset[2][4];
    std::uint32_t steps[4];
    products(stage, state, scales, z, z_bar, steps);
    target_offset<F>(offset, stage.k, stage.v, norm);
    float sums[2][kForwardSums] = {};
    add_z_sums(sums, z, offset, norm);
    add_bar_sums(sums, last_z_bar);
    put_sums(sums, buffer);
    copy_async_wait<kAhead - 2>();
    __syncthreads();  // the sums and stage m + 1 are there; stage m - 2 is free
    load_stage<F>(a, rows, shared, m + kAhead);

    if (m > 0) write_output<F>(a, rows, shared, buffer, m - 1, last_z_bar, norm);
    std::uint32_t step[4], step_t[4];
    scaled_gradients<F>(step, buffer, stage.rates, z, offset, norm);
    if (a.step_gradients != nullptr) store_own<F>(a.step_gradients, rows, m, step);
    transpose_blocks(step_t, step);
    step_state(state, step_t, stage.k, -scales[rows.count(m) - 1]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      mma_m16n8k16(z_bar[j], steps, step_t[2 * j], step_t[2 * j + 1]);
#pragma unroll
      for (int r = 0; r < 4; ++r) last_z_bar[j][r] = z_bar[j][r];
    }
  }

  float sums[2][kForwardSums] = {};
  add_bar_sums(sums, last_z_bar);
  float* const buffer = sums_buffer<F>(shared, num_mini_batches);
  put_sums(sums, buffer);
  __syncthreads();
  write_output<F>(a, rows, shared, buffer, num_mini_batches - 1, last_z_bar, norm);
  if (a.checkpoints != nullptr) {
    const int slot = (num_mini_batches - 1) / kCheckpointEvery;
    store_checkpoint(state, a.checkpoints + checkpoint_offset<F>(rows, slot));
  }
  if (a.final_w != nullptr) {
    store_state(state, means, a.final_w + pair * F * F, a.final_b + pair * F);
  }
}

}  // namespace

void fused_linear_forward(const TttInputs& inputs, const TttState& initial, TensorView out,
                          const TttState& final_state, TttSaved* saved, Stream& stream) {
  const std::int64_t tokens = inputs.q.size(1);
  const std::int64_t heads = inputs.q.size(2);
  const std::int64_t pairs = inputs.q.size(0) * heads;
  expect_countable_rows(inputs.q);
  visit_head_dim(inputs.q.size(3), [&](auto head_dim) {
    constexpr int F = decltype(head_dim)::value;
    static_assert(ForwardMemory<F>::kBytes <= fused_shared_bytes(InnerModel::kLinear, F));
    if (saved != nullptr) {
      saved->step_gradients = Tensor(inputs.q.shape(), DType::kBF16);
      saved->checkpoints = Tensor(
          {inputs.q.size(0), heads, num_checkpoints(tokens), Layout<F>::kStateFloats}, DType::kF32);
    }
    ForwardArguments a{};
    a.in = pointers(inputs);
    a.initial_w = initial.w1.data<float>();
    a.initial_b = initial.b1.data<float>();
    a.out = out.data<BFloat16>();
    a.step_gradients = saved == nullptr ? nullptr : saved->step_gradients.data<BFloat16>();
    a.final_w = floats_or_null(final_state.w1);
    a.final_b = floats_or_null(final_state.b1);
    a.checkpoints = saved == nullptr ? nullptr : saved->checkpoints.data<float>();
    launch(linear_forward_kernel<F>,
           {dim3(static_cast<unsigned>(pairs)), dim3(Layout<F>::kThreads),
            static_cast<std::size_t>(ForwardMemory<F>::kBytes)},
           stream, a);
  });
}

}  // namespace ttt::kernels::cuda
