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

constexpr int kStages = 4;  // m to m + 3
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
  // What warps hand to each other, twice: slow ones still read the other.
  static constexpr int kSumsBytes = L::kWarps * 32 * kPartFloats<kForwardSums> * 4;
  static constexpr int kSteps = kSumsBytes;  // the step matrix, a fragment
  static constexpr int kOut = kSteps + L::kFragmentBytes;
  static constexpr int kGradients = kOut + L::kTileBytes;
  static constexpr int kExchangeBytes = kGradients + L::kTileBytes;

  static constexpr int kExchange = kStages * kStageBytes;
  static constexpr int kTerms = kExchange + 2 * kExchangeBytes;
  static constexpr int kScales = kTerms + L::kWarps * 2 * kTokens * 16;
  static constexpr int kMeans = kScales + L::kScalesBytes;
  static constexpr int kBytes = kMeans + L::kMeansBytes;
  static_assert(kExchangeBytes >= (F + 1) * L::kWarps * 4, "centre uses them first");
};

// Where mini-batch m's inputs are.
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

// What warps tell each other in mini-batch m: its sums and step matrix, rows of m - 1's output and of its l G.
template <int F>
struct Exchange {
  float* sums;
  std::byte *steps, *out, *gradients;

  __device__ Exchange(std::byte* shared, int m) {
    using M = ForwardMemory<F>;
    std::byte* const first = shared + M::kExchange + m % 2 * M::kExchangeBytes;
    sums = reinterpret_cast<float*>(first);
    steps = first + M::kSteps;
    out = first + M::kOut;
    gradients = first + M::kGradients;
  }
};

// Asks for mini-batch m's rows. Past the end too it ends a group: waits count groups.
template <int F>
__device__ __forceinline__ void load_stage(const ForwardArguments& a, const PairRows& rows,
                                           const Chunk<F>& chunk, std::byte* shared, int m) {
  if (m < rows.num_mini_batches()) {
    const ForwardStage<F> stage(shared, m);
    copy_tiles_async<F>(stage.k, {a.in.k, a.in.q, a.in.v}, rows, chunk, m);
    copy_rates_async(stage.rates, a.in.token_lr, rows, m);
  }
  copy_async_commit();
}

// The step matrix -(c_i (q_i k_j + 1)), j <= i, whose rates l are in l G.
template <int F>
__device__ __forceinline__ void put_steps(std::byte* to, const ForwardStage<F>& stage,
                                          const float* scales) {
  float scores[2][4];
  scores_of<F>(scores, stage.q, stage.k);
  std::uint32_t steps[4];
  pack_steps(steps, scores, scales);
  put_fragment(to, steps);
}

// Z = k W + b and the part q W + b of Z'.
template <int F>
__device__ __forceinline__ void products(const ForwardStage<F>& stage, const LinearState<F>& state,
                                         float (&z)[2][4], float (&z_bar)[2][4]) {
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
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const uint2 w = operand(state.w, i, j);
      mma_m16n8k16(z[j], k, w.x, w.y);
      mma_m16n8k16(z_bar[j], q, w.x, w.y);
    }
  }
}

// p = gamma (beta - (v - k)).
template <int F>
__device__ __forceinline__ void scaled_offset(float (&p)[2][4], const ForwardStage<F>& stage,
                                              const HeadNorm& norm) {
  float difference[2][4];
  key_minus_value<F>(difference, stage.k, stage.v);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float weight = norm.weight[j][r & 1];
      p[j][r] = weight * difference[j][r] + weight * norm.bias[j][r & 1];
    }
  }
}

// Both norms of each token, in the terms of scaled_gradients and output_rows.
template <int F>
__device__ __forceinline__ void put_terms(const TokenTerms& terms, const float* sums,
                                          const float* rates) {
  float mean[kForwardSums];
  means_of_token<F>(mean, sums);
  const TokenNorm n(mean);
  const float outer = n.rstd * rates[token_of_lane()];
  terms.put({n.rstd * outer, outer, n.mean_e * outer, n.mean_ex},
            {norm_rstd(mean[kBarBar]), 0, 0, 0});
}

// l G at the warp's own features: with x = (z - mean) rstd and e = a x + p, G = (e - mean(e) - x mean(e x)) rstd.
__device__ __forceinline__ void scaled_gradients(std::uint32_t (&step)[4], const TokenTerms& terms,
                                                 const float (&z)[2][4], const float (&p)[2][4],
                                                 const HeadNorm& norm) {
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const float4 n = terms.first(this_lane().g + 8 * k);
    const float scale = n.x, outer = n.y, mean_e = n.z,
                mean_ex = n.w;  // all but mean_ex: times rstd l
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float g[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int i = 2 * k + e;
        g[e] = (norm.square(j, e) - mean_ex) * (z[j][i] * scale) + (p[j][i] * outer - mean_e);
      }
      step[2 * j + k] = pack_bf16(g[0], g[1]);
    }
  }
}

// out = q + LN(Z').
__device__ __forceinline__ void output_rows(std::uint32_t (&out)[4], const TokenTerms& terms,
                                            const float (&z_bar)[2][4], const std::uint32_t (&q)[4],
                                            const HeadNorm& norm) {
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const float rstd = terms.second(this_lane().g + 8 * k).x;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float y[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int i = 2 * k + e;
        y[e] = norm.weight[j][e] * (z_bar[j][i] * rstd) + (unpacked(q, j, i) + norm.bias[j][e]);
      }
      out[2 * j + k] = pack_bf16(y[0], y[1]);
    }
  }
}

// Rows that warps have put into tiles leave a barrier later, whole: of l G in mini-batch m, which has `count` of them, and
// of the output in m - 1, which is full.
template <int F>
__device__ __forceinline__ void write_rows(const ForwardArguments& a, const PairRows& rows,
                                           const Chunk<F>& chunk, const Exchange<F>& of, int m,
                                           int count) {
  if (m > 0) write_tile<F>(a.out, of.out, rows, chunk, m - 1, kTokens);
  if (a.step_gradients != nullptr) {
    write_tile<F>(a.step_gradients, of.gradients, rows, chunk, m, count);
  }
}

template <int F>
__global__ void __launch_bounds__(Layout<F>::kThreads, F == 64 ? 4 : 2)
    linear_forward_kernel(ForwardArguments a) {
  using Memory = ForwardMemory<F>;
  std::byte* const shared = dynamic_shared_memory();
  float* const scales = reinterpret_cast<float*>(shared + Memory::kScales);
  float* const means = reinterpret_cast<float*>(shared + Memory::kMeans);
  const TokenTerms terms(shared + Memory::kTerms);
  const PairRows rows = rows_of_pair(blockIdx.x, a.in);
  const Chunk<F> chunk;
  const int num_mini_batches = rows.num_mini_batches();
  for (int m = 0; m < kAhead; ++m) load_stage<F>(a, rows, chunk, shared, m);

  const std::int64_t pair = blockIdx.x;
  const std::int64_t head = pair % a.in.heads;
  const int warp = this_lane().warp;
  LinearState<F> state;
  load_state(state, a.initial_w + pair * F * F, a.initial_b + pair * F);
  centre(state, reinterpret_cast<float*>(shared + Memory::kExchange), means);
  const HeadNorm norm = load_norm<F>(a.in.norm_weight + head * F, a.in.norm_bias + head * F);
  copy_scales(scales, a.in.token_scale);
  copy_async_wait<kAhead - 1>();
  __syncthreads();  // stage 0 and the scales are there

  float last_z_bar[2][4] = {};  // of the mini-batch before
  std::uint32_t last_q[4] = {}, out[4];
#pragma unroll 1
  for (int m = 0; m < num_mini_batches; ++m) {
    if (a.checkpoints != nullptr && m > 0 && m % kCheckpointEvery == 0) {
      const int slot = m / kCheckpointEvery - 1;
      store_checkpoint(state, a.checkpoints + checkpoint_offset<F>(rows, slot));
    }
    const ForwardStage<F> stage(shared, m);
    const Exchange<F> exchange(shared, m);
    if (warp == m % Layout<F>::kWarps) put_steps<F>(exchange.steps, stage, scales);
    float z[2][4], z_bar[2][4], p[2][4];
    products(stage, state, z, z_bar);
    scaled_offset(p, stage, norm);
    float sums[2][kForwardSums] = {};
    add_z_sums(sums, z, p, norm);
    add_bar_sums(sums, last_z_bar);
    put_sums(sums, exchange.sums);
    copy_async_wait<kAhead - 2>();
    __syncthreads();  // the sums, the step matrix, stage m + 1, rows to write; stage m - 1 is free
    load_stage<F>(a, rows, chunk, shared, m + kAhead);
    if (m > 0) write_rows<F>(a, rows, chunk, Exchange<F>(shared, m - 1), m - 1, kTokens);

    put_terms<F>(terms, exchange.sums, stage.rates);
    if (m > 0) {
      output_rows(out, terms, last_z_bar, last_q, norm);
      store_rows<F>(exchange.out, opaque(warp), out);
    }
    load_rows<F>(last_q, stage.q, warp);
    std::uint32_t step[4], step_t[4];
    scaled_gradients(step, terms, z, p, norm);
    store_rows<F>(exchange.gradients, opaque(warp), step);
    __syncwarp();
    load_transposed<F>(step_t, exchange.gradients, warp);
    step_state(state, exchange.gradients, step_t, stage.k, -scales[rows.count(m) - 1]);
    std::uint32_t steps[4];
    get_fragment(steps, exchange.steps);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      mma_m16n8k16(z_bar[j], steps, step_t[2 * j], step_t[2 * j + 1]);
#pragma unroll
      for (int r = 0; r < 4; ++r) last_z_bar[j][r] = z_bar[j][r];
    }
  }

  const Exchange<F> exchange(shared, num_mini_batches);
  float sums[2][kForwardSums] = {};
  add_bar_sums(sums, last_z_bar);
  put_sums(sums, exchange.sums);
  __syncthreads();
  const int last = num_mini_batches - 1;
  write_rows<F>(a, rows, chunk, Exchange<F>(shared, last), last, rows.count(last));
  put_terms<F>(terms, exchange.sums, scales);  // no rates: only the output's norm counts
  output_rows(out, terms, last_z_bar, last_q, norm);
  store_rows<F>(exchange.out, warp, out);
  __syncthreads();
  write_tile<F>(a.out, exchange.out, rows, chunk, last, rows.count(last));
  if (a.checkpoints != nullptr) {
    const int slot = last / kCheckpointEvery;
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
