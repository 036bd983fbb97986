#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ttt_mlp_forward.h"
#include "kernels/cuda/ttt_paths.h"

namespace ttt::kernels::cuda {
namespace mlp {

template <int F, bool kCluster>
__device__ __forceinline__ void Forward<F, kCluster>::load_state() {
  const StatePointers& from = arguments.initial;
  const float* const pair_w2 = from.w2 + (std::int64_t{pair} * kHidden<F> + at.slice * F) * F;
  for (int i = 0; i < 16; ++i) {
    const int row = 16 * at.warp + i;
    LaneRow<F> w;
    load_row<F>(w, pair_w2 + row * F, at.lane);
    const float mean = mean_of<F>(w);
    if (at.lane == 0) row_means()[row] = mean;
  }
  LaneRow<F> b2;
  load_row<F>(b2, from.b2 + std::int64_t{pair} * F, at.lane);
  const float mean = mean_of<F>(b2);
  if (threadIdx.x < 32) {
    for_each_pair<F>(at.lane, [&](int i, int feature) {
      for (int e = 0; e < 2; ++e) floats(L::kB2)[feature + e] = b2[2 * i + e] - mean;
    });
    if (at.lane == 0) floats(L::kB2Mean)[0] = mean;
  }
  const std::int64_t head = pair % in.heads;
  const float mean_square =
      LaneNorm<F>(in.norm_weight + head * F, in.norm_bias + head * F, at.lane).mean_square();
  if (threadIdx.x == 0) floats(L::kMeanSquare)[0] = mean_square;
  if (threadIdx.x < F) {
    const auto place = static_cast<int>(threadIdx.x);
    floats(L::kGamma)[place] = in.norm_weight[head * F + place];
    floats(L::kBeta)[place] = in.norm_bias[head * F + place];
  }
  slice_barrier();
  const float* const pair_w1 = from.w1 + std::int64_t{pair} * F * kHidden<F> + at.first_hidden();
  for_each_state_element(at, [&](int tile, int i, int row, int column) {
    if (i == 0 && tile % 4 == 0) __syncwarp();  // in two parts: addresses take registers
    w1[tile][i] = pair_w1[column * kHidden<F> + row];
    w2[tile][i] = pair_w2[column * F + at.first_output() + row] - row_means()[column];
  });
  if (at.lane < 16) b1()[at.lane] = from.b1[pair * kHidden<F> + at.first_hidden() + at.lane];
}

template <int F, bool kCluster>
__device__ __forceinline__ void Forward<F, kCluster>::store_state(const StatePointers& to,
                                                                  bool with_means) {
  if (to.w1 == nullptr) return;
  begin_phase();
  float* const pair_w1 = to.w1 + std::int64_t{pair} * F * kHidden<F> + at.first_hidden();
  float* const pair_w2 =
      to.w2 + (std::int64_t{pair} * kHidden<F> + at.slice * F) * F + at.first_output();
  for_each_state_element(at, [&](int tile, int i, int row, int column) {
    if (i == 0) __syncwarp();  // against reading all means ahead: there are no registers for them
    pair_w1[column * kHidden<F> + row] = w1[tile][i];
    pair_w2[column * F + row] = w2[tile][i] + (with_means ? row_means()[column] : 0.0F);
  });
  if (at.lane < 16) to.b1[pair * kHidden<F> + at.first_hidden() + at.lane] = b1()[at.lane];
  const int feature = 32 * at.warp + at.lane;
  if (at.slice == 0 && feature < F) {
    to.b2[std::int64_t{pair} * F + feature] =
        floats(L::kB2)[feature] + (with_means ? floats(L::kB2Mean)[0] : 0.0F);
  }
}

template <int F, bool kCluster>
__device__ __forceinline__ void Forward<F, kCluster>::run() {
  for (int m = 0; m < L::kStages - 1; ++m) load_stage(m);
  load_state();
  publish<F>(w2_matrix(), w2, at);
  copy_async_wait<L::kStages - 2>();
  first_barrier();
  const int count = rows.num_mini_batches();
#pragma unroll 1
  for (int m = 0; m <= count; ++m) {
    const ForwardStage s = stage(m);
    std::byte* const x2 = x2_tile(m);
    copy_async_wait<L::kStages - 3>();  // the next stage is there after a barrier
    if (m < count) {                    // the last round only writes outputs
      begin_phase();
      hidden_layer(s, x2);
      slice_barrier();
      begin_phase();
      send_output(x2);
    }
    wait_for_sums(m);
    load_stage(m + L::kStages - 1);  // in the place of the stage before this one
    begin_phase();
    finish_tokens(s, m);
    if (m == count) break;
    wait_for_g2(m);
    const float step = in.token_scale[rows.count(m) - 1];
    begin_phase();
    step_hidden(s, m, step);
    slice_barrier();
    begin_phase();
    read_and_step(x2, step);
  }
  store_state(arguments.checkpoint, false);
  store_state(arguments.final_state, true);
}

namespace {

template <int F, bool kCluster>
__global__ void __launch_bounds__(ForwardLayout<F, kCluster>::kThreads, kCluster&& F == 64 ? 2 : 1)
    forward_kernel(ForwardArguments arguments) {
  if constexpr (kHasClusters || !kCluster) {
    Forward<F, kCluster>(arguments, dynamic_shared_memory()).run();
  } else {
    stop_without_clusters();
  }
}

template <int F, bool kCluster>
void launch_forward(const ForwardArguments& arguments, std::int64_t num_pairs, Stream& stream) {
  using L = ForwardLayout<F, kCluster>;
  const auto blocks = static_cast<unsigned>(kCluster ? num_pairs * kSlices : num_pairs);
  launch(forward_kernel<F, kCluster>,
         {dim3(blocks), dim3(L::kThreads), L::kBytes, kCluster ? kSlices : 1U}, stream, arguments);
}

/// From this many pairs on one block each fills the device: an H200 has 132 multiprocessors.
constexpr std::int64_t kPairsThatFill = 132;

}  // namespace
}  // namespace mlp

void fused_mlp_forward_as(MlpShape shape, const TttInputs& inputs, const TttState& initial,
                          TensorView out, const TttState& final_state, TttSaved* saved,
                          Stream& stream) {
  const Shape& rows = inputs.q.shape();
  const std::int64_t num_pairs = rows[0] * rows[2];
  fused::expect_countable_rows(inputs.q);
  fused::visit_head_dim(rows[3], [&](auto head_dim) {
    constexpr int F = decltype(head_dim)::value;
    static_assert(mlp::ForwardLayout<F, true>::kBytes <= fused_shared_bytes(InnerModel::kMlp, F));
    mlp::ForwardArguments arguments{};
    arguments.in = mlp::pointers(inputs);
    arguments.initial = mlp::pointers(initial);
    arguments.final_state = mlp::pointers(final_state);
    arguments.out = out.data<BFloat16>();
    if (saved != nullptr) {
      saved->checkpoints = Tensor({num_pairs * mlp::kStateSize<F>}, DType::kF32);
      saved->step_gradients = Tensor(rows, DType::kBF16);
      saved->hidden_step_gradients =
          Tensor({rows[0], rows[1], rows[2], mlp::kHidden<F>}, DType::kBF16);
      arguments.checkpoint = mlp::pointers<F>(saved->checkpoints, num_pairs);
      arguments.step_gradients = saved->step_gradients.data<BFloat16>();
      arguments.hidden_step_gradients = saved->hidden_step_gradients.data<BFloat16>();
    }
    if (shape == MlpShape::kCluster) {
      mlp::launch_forward<F, true>(arguments, num_pairs, stream);
    } else if constexpr (F == 64) {
      mlp::launch_forward<F, false>(arguments, num_pairs, stream);
    } else {
      fail(ExitCode::kInternal, "TTT-MLP with head dim {} needs a cluster of blocks", F);
    }
  });
}

void fused_mlp_forward(const TttInputs& inputs, const TttState& initial, TensorView out,
                       const TttState& final_state, TttSaved* saved, Stream& stream) {
  const std::int64_t num_pairs = inputs.q.size(0) * inputs.q.size(2);
  const bool use_cluster = num_pairs < mlp::kPairsThatFill || inputs.q.size(3) != 64 ||
                           block_limits().shared_bytes < mlp::ForwardLayout<64, false>::kBytes;
  fused_mlp_forward_as(use_cluster ? MlpShape::kCluster : MlpShape::kOneBlock, inputs, initial, out,
                       final_state, saved, stream);
}

}  // namespace ttt::kernels::cuda
