#pragma once
// What the fused backward of TTT-Linear keeps, and where: arguments, shared memory, registers. The story is in
// kernels/cuda/ttt_linear_backward.cu.

#include "kernels/cuda/ttt_linear_state.h"

namespace ttt::kernels::cuda::fused::linear_backward {

#if defined(__CUDACC__) || defined(TTT_SIMT_EMULATOR)

constexpr int kStages = 3;
enum BackwardSum { kH = kForwardSums, kHBar, kBackwardSums };  // h = gamma d_out
enum StepSum { kD, kDx, kDe, kAd, kAdx, kStepSums };           // d = d(l G)

struct BackwardArguments {
  Inputs in;
  const BFloat16 *step_gradients, *d_out;  // [B, T, H, F]
  const float* checkpoints;                // [B, H, num_checkpoints, F F + F]
  const float *d_final_w, *d_final_b;      // [B, H, F, F], [B, H, 1, F], or null: zero
  BFloat16 *d_q, *d_k, *d_v;               // [B, T, H, F]
  float* d_token_lr;                       // [B, T, H]
  float *d_initial_w, *d_initial_b;        // as d_final
  float* partials;                         // [B, H, 16 + F + F]: of the gradients that pairs share
  float* restored;                         // [B, H, F F + F]: where the walk ended; or null
};

template <int F>
struct BackwardMemory {
  using L = Layout<F>;
  static constexpr int kStageBytes = 5 * L::kTileBytes + L::kRateBytes;
  static constexpr int kCopyBytes = F * L::kRowBytes;
  static constexpr int kCopies =
      kStages * kStageBytes;  // W, dW'; twice: slow warps still read the others
  static constexpr int kDZBar = kCopies + 4 * kCopyBytes;
  static constexpr int kDZ = kDZBar + L::kTileBytes;
  static constexpr int kSums = kDZ + L::kTileBytes;
  static constexpr int kStepSumsAt = kSums + L::kWarps * 32 * kPartFloats<kBackwardSums> * 4;
  static constexpr int kTerms = kStepSumsAt + L::kWarps * 32 * kPartFloats<kStepSums> * 4;
  static constexpr int kScoresBytes = 2 * 32 * 16;                       // fp32
  static constexpr int kScores = kTerms + L::kWarps * 2 * kTokens * 16;  // of two mini-batches
  static constexpr int kSteps = kScores + 2 * kScoresBytes;              // and their transpose
  static constexpr int kDScores = kSteps + 2 * L::kFragmentBytes;        // the same
  static constexpr int kScales = kDScores + 2 * L::kFragmentBytes;
  static constexpr int kMeans = kScales + L::kScalesBytes;
  static constexpr int kDScale = kMeans + L::kMeansBytes;               // [warps][lane][2]
  static constexpr int kDLastScale = kDScale + L::kWarps * 32 * 2 * 4;  // [2][warps]
  static constexpr int kGammaSquare = kDLastScale + 2 * L::kWarps * 4;  // its mean
  static constexpr int kBeta = kGammaSquare + 16;
  static constexpr int kBytes = kBeta + F * 4;
  static_assert(kTerms - kSums >= (F + 1) * L::kWarps * 4, "centre uses them first");
};

template <int F>
struct BackwardStage {
  std::byte *k, *q, *v, *step, *d_out;
  float* rates;

  __device__ BackwardStage(std::byte* shared, int iteration)
      : k(shared + iteration % kStages * BackwardMemory<F>::kStageBytes),
        q(k + Layout<F>::kTileBytes),
        v(q + Layout<F>::kTileBytes),
        step(v + Layout<F>::kTileBytes),
        d_out(step + Layout<F>::kTileBytes),
        rates(reinterpret_cast<float*>(d_out + Layout<F>::kTileBytes)) {}
};

// Asks for the rows of iteration i, which is mini-batch n - 1 - i.
template <int F>
__device__ __forceinline__ void load_stage(const BackwardArguments& a, const PairRows& rows,
                                           const Chunk<F>& chunk, std::byte* shared,
                                           int iteration) {
  const int m = rows.num_mini_batches() - 1 - iteration;
  if (m >= 0) {
    const BackwardStage<F> stage(shared, iteration);
    copy_tiles_async<F>(stage.k, {a.in.k, a.in.q, a.in.v, a.step_gradients, a.d_out}, rows, chunk,
                        m);
    copy_rates_async(stage.rates, a.in.token_lr, rows, m, opaque(static_cast<int>(threadIdx.x)));
  }
  copy_async_commit();
}

// What lives from the last mini-batch to the first.
template <int F>
struct Walk {
  LinearState<F> state;    // at the mini-batch's start
  LinearState<F> d_state;  // of the state at its end, then at its start
  HeadNorm norm;

  float d_norm_weight[2][2];  // [j][e], of the lane's tokens
  float d_norm_bias[2][2];
  float d_last_scale;  // from the step of the state, of all the lane's elements
};

// What lives from one phase of a mini-batch to the next, at the warp's own features.
struct Values {
  float z[2][4];            // then x, normalised
  float z_bar[2][4];        // Z'
  float offset[2][4];       // beta - (v - k)
  float update_read[2][4];  // U = k dW' + db'
  float d_step[2][4];       // d(l G)
  std::uint32_t d_out[4];
  std::uint32_t d_z_bar_t[4];
  std::uint32_t d_target[4];
};

#endif

}  // namespace ttt::kernels::cuda::fused::linear_backward
