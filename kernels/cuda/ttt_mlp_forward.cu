#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ttt_mlp_forward.h"
#include "kernels/cuda/ttt_paths.h"

namespace ttt::kernels::cuda {
namespace mlp {

template <bool kCluster>
__device__ __forceinline__ void Forward<kCluster>::load_state() {
  const StatePointers& from = arguments.initial;
  const float* const pair_w2 =
      from.w2 + (std::int64_t{pair.index} * kHidden + at.slice * 64) * kFeatures;
  float* const row_means = floats(Layout::kRowMeans) + at.local_slice * kFeatures;
  for (int i = 0; i < 16; ++i) {
    const int row = 16 * at.quarter + i;
    float mean[1] = {pair_w2[row * kFeatures + 2 * at.lane] +
                     pair_w2[row * kFeatures + 2 * at.lane + 1]};
    mean_over_features(mean);
    if (at.lane == 0) row_means[row] = mean[0];
  }
  const float* const pair_b2 = from.b2 + pair.index * kFeatures + 2 * at.lane;
  float mean[1] = {pair_b2[0] + pair_b2[1]};
  mean_over_features(mean);
  if (threadIdx.x < 32) {
    for (int e = 0; e < 2; ++e) floats(Layout::kB2)[2 * at.lane + e] = pair_b2[e] - mean[0];
    if (at.lane == 0) floats(Layout::kB2Mean)[0] = mean[0];
  }
  slice_barrier(at);
  const float* const pair_w1 =
      from.w1 + std::int64_t{pair.index} * kFeatures * kHidden + at.first_hidden();
  for_each_state_element(at, [&](int tile, int i, int row, int column) {
    w1[tile][i] = pair_w1[column * kHidden + row];
    w2[tile][i] = pair_w2[column * kFeatures + at.first_output() + row] - row_means[column];
  });
  for_each_bias(at, [&](int j, int e, int column) {
    b1[j][e] = from.b1[pair.index * kHidden + at.first_hidden() + column];
  });
}

template <bool kCluster>
__device__ __forceinline__ void Forward<kCluster>::store_state(const StatePointers& to,
                                                               bool with_means) const {
  if (to.w1 == nullptr) return;
  float* const pair_w1 = to.w1 + std::int64_t{pair.index} * kFeatures * kHidden + at.first_hidden();
  float* const pair_w2 =
      to.w2 + (std::int64_t{pair.index} * kHidden + at.slice * 64) * kFeatures + at.first_output();
  const float* const row_means = floats(Layout::kRowMeans) + at.local_slice * kFeatures;
  for_each_state_element(at, [&](int tile, int i, int row, int column) {
    pair_w1[column * kHidden + row] = w1[tile][i];
    pair_w2[column * kFeatures + row] = w2[tile][i] + (with_means ? row_means[column] : 0.0F);
  });
  if (at.g == 0) {
    for_each_bias(at, [&](int j, int e, int column) {
      to.b1[pair.index * kHidden + at.first_hidden() + column] = b1[j][e];
    });
  }
  if (at.slice == 0 && at.quarter < 2) {
    const int feature = 32 * at.quarter + at.lane;
    to.b2[pair.index * kFeatures + feature] =
        floats(Layout::kB2)[feature] + (with_means ? floats(Layout::kB2Mean)[0] : 0.0F);
  }
}

template <bool kCluster>
__device__ __forceinline__ void Forward<kCluster>::run() {
  for (int i = 0; i < Layout::kStages - 1; ++i) load_stage(i);
  load_state();
  publish(w2_matrix(), w2, at);
  copy_async_wait<Layout::kStages - 2>();
  pair_barrier();  // in a cluster also: every block has started before anyone stores into it
  const int count = (in.num_tokens + kTokens - 1) / kTokens;
#pragma unroll 1
  for (int mini_batch = 0; mini_batch <= count; ++mini_batch) {
    const ForwardStage s = stage(mini_batch);
    const bool is_live = mini_batch < count;  // the last round only writes outputs
    std::byte* const x2 = x2_tile(mini_batch);
    if (is_live) {
      begin_phase();
      hidden_layer(s, x2);
      slice_barrier(at);
      begin_phase();
      send_output(x2);
    }
    copy_async_wait<Layout::kStages - 3>();
    pair_barrier();  // partial sums; also the next stage is there, and the one before is free
    load_stage(mini_batch + Layout::kStages - 1);
    begin_phase();
    finish_tokens(s, mini_batch > 0, is_live);
    if (!is_live) break;
    pair_barrier();
    const float step = in.token_scale[s.count - 1];
    begin_phase();
    step_hidden(s, step);
    slice_barrier(at);
    begin_phase();
    read_and_step(x2, step);
  }
  store_state(arguments.checkpoint, false);
  store_state(arguments.final_state, true);
  if constexpr (kCluster) cluster_barrier();  // nobody may end while others can still store into it
}

namespace {

template <bool kCluster>
__global__ void __launch_bounds__(ForwardLayout<kCluster>::kThreads, kCluster ? 2 : 1)
    forward_kernel(ForwardArguments arguments) {
  Forward<kCluster>(arguments, dynamic_shared_memory()).run();
}

template <bool kCluster>
void launch_forward(const ForwardArguments& arguments, std::int64_t num_pairs, Stream& stream) {
  using Layout = ForwardLayout<kCluster>;
  const auto blocks = static_cast<unsigned>(kCluster ? num_pairs * kSlices : num_pairs);
  launch(forward_kernel<kCluster>,
         {dim3(blocks), dim3(Layout::kThreads), Layout::kBytes, kCluster ? kSlices : 1U}, stream,
         arguments);
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
  mlp::ForwardArguments arguments{};
  arguments.inputs = mlp::pointers(inputs);
  arguments.initial = mlp::pointers(initial);
  arguments.final_state = mlp::pointers(final_state);
  arguments.out = out.data<BFloat16>();
  if (saved != nullptr) {
    saved->checkpoints = Tensor({num_pairs * mlp::kStateSize}, DType::kF32);
    saved->step_gradients = Tensor(rows, DType::kBF16);
    saved->hidden_step_gradients = Tensor({rows[0], rows[1], rows[2], mlp::kHidden}, DType::kBF16);
    arguments.checkpoint = mlp::pointers(saved->checkpoints, num_pairs);
    arguments.step_gradients = saved->step_gradients.data<BFloat16>();
    arguments.hidden_step_gradients = saved->hidden_step_gradients.data<BFloat16>();
  }
  if (shape == MlpShape::kCluster) {
    mlp::launch_forward<true>(arguments, num_pairs, stream);
  } else {
    mlp::launch_forward<false>(arguments, num_pairs, stream);
  }
}

void fused_mlp_forward(const TttInputs& inputs, const TttState& initial, TensorView out,
                       const TttState& final_state, TttSaved* saved, Stream& stream) {
  const std::int64_t num_pairs = inputs.q.size(0) * inputs.q.size(2);
  const bool use_cluster = num_pairs < mlp::kPairsThatFill && compute_capability() >= kHopper;
  fused_mlp_forward_as(use_cluster ? MlpShape::kCluster : MlpShape::kOneBlock, inputs, initial, out,
                       final_state, saved, stream);
}

}  // namespace ttt::kernels::cuda
