#include "kernels/cuda/conv_runs.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rotation_table.h"
#include "kernels/cuda/shared_qk_path.h"
#include "kernels/shared_qk.h"

namespace ttt::kernels::cuda {
namespace {

using namespace conv;  // NOLINT(google-build-using-namespace): what it shares with causal_conv.cu

// Of q and of k.
struct Parameters {
  const float* w[2];
  const float* bias[2];
};
template <typename T>
struct Rows {
  T* of[2];
};

// Where a token's rotations stand in the table [entries, head_dim].
struct Turns {
  const float* table;
  int entries, head_dim;
};

// The rotations of a thread's channels, token after token.
class Place {
 public:
  __device__ Place(const Turns& turns, std::int64_t token, std::int64_t channel)
      : row_(turns.table + channel % turns.head_dim),
        entry_(static_cast<int>(token % turns.entries)) {}

  __device__ __forceinline__ void next(const Turns& turns) {
    if (++entry_ == turns.entries) entry_ = 0;
  }
  __device__ __forceinline__ void load(const Turns& turns, float (&rotation)[kWidth]) const {
    load_chunk<kWidth>(row_ + static_cast<std::int64_t>(entry_) * turns.head_dim, rotation);
  }

 private:
  const float* row_;
  int entry_;
};

// Turns the pairs of neighbours.
__device__ __forceinline__ void turn(const float (&rotation)[kWidth], float (&values)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; i += 2) {
    const float a = values[i];
    const float b = values[i + 1];
    values[i] = a * rotation[i] - b * rotation[i + 1];
    values[i + 1] = a * rotation[i + 1] + b * rotation[i];
  }
}

// q's weights, then k's. All threads of the block call it.
template <int kBlockGroups>
__device__ __forceinline__ void load_both_weights(const Parameters& parameters, const Sizes& sizes,
                                                  std::int64_t tile,
                                                  float (&weights)[2][kTaps][kWidth]) {
  load_weights<kBlockGroups>(parameters.w[0], sizes, tile, weights[0]);
  __syncthreads();  // before the staged weights are overwritten
  load_weights<kBlockGroups>(parameters.w[1], sizes, tile, weights[1]);
}

template <bool kTurns, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    shared_qk_forward_kernel(const T* __restrict__ p, Parameters parameters,
                             const T* __restrict__ history, Rows<T> out, Turns turns, Sizes sizes,
                             std::int64_t tiles) {
  const std::int64_t tile = blockIdx.x % tiles * (kWarpLanes * kWidth);
  float weights[2][kTaps][kWidth];
  load_both_weights<kGroups>(parameters, sizes, tile, weights);
  const std::int64_t c = tile + threadIdx.x * kWidth;
  const std::int64_t index = blockIdx.x / tiles * kGroups + threadIdx.y;
  if (c >= sizes.channels || index >= sizes.runs()) return;  // no barrier follows
  const Run run = run_of(sizes, index);
  float offsets[2][kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    offsets[0][i] = parameters.bias[0][c + i];
    offsets[1][i] = parameters.bias[1][c + i];
  }
  // inputs[i] is that of token t + i - (kTaps - 1).
  float inputs[kTaps - 1 + kBatch][kWidth];
#pragma unroll
  for (int i = 0; i < kTaps - 1; ++i) {
    const int back = kTaps - 1 - i;
    fill_zero(inputs[i]);
    if (back >= sizes.window) continue;
    const T* const row = input_row(p, history, sizes, run.b, run.begin - back);
    if (row != nullptr) load_chunk<kWidth>(row + c, inputs[i]);
  }
  const int count = static_cast<int>(run.end - run.begin);
  std::int64_t at = (run.b * sizes.tokens + run.begin) * sizes.channels + c;
  const T* p_row = p + at;
  Place place(turns, run.begin, c);
  for (int done = 0; done < count; done += kBatch) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i, p_row += sizes.channels) {
      fill_zero(inputs[kTaps - 1 + i]);
      if (done + i < count) load_chunk<kWidth>(p_row, inputs[kTaps - 1 + i]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i, at += sizes.channels) {
      if (done + i >= count) continue;
      float rotation[kWidth];
      if constexpr (kTurns) {
        place.load(turns, rotation);
        place.next(turns);
      }
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        float sum[kWidth];
#pragma unroll
        for (int k = 0; k < kWidth; ++k) sum[k] = offsets[which][k];
#pragma unroll
        for (int lag = 0; lag < kTaps; ++lag) {
          if (lag < sizes.window) {
            add_product(weights[which][lag], inputs[kTaps - 1 + i - lag], sum);
          }
        }
        if constexpr (kTurns) turn(rotation, sum);
        store_chunk<kWidth>(out.of[which] + at, sum);
      }
    }
    shift_window<kBatch>(inputs);
  }
}

constexpr int kBackwardBatch = 2;  // tokens: three rows of each are under way together
// Small blocks: a thread takes 160 registers, and three blocks fit.
constexpr int kBackwardGroups = 4;
constexpr int kAhead = kTaps - 1 + kBackwardBatch;

// d_p[t] = sum over q, k and lags of w[lag] d[t + lag], d turned back;  d_w[lag] = sum over t of p[t] d[t + lag].
template <bool kTurns, typename T>
__device__ __forceinline__ void backward_run(const T* __restrict__ p, const Rows<const T>& d,
                                             T* __restrict__ d_p, const Turns& turns,
                                             const Sizes& sizes, const Run& run, std::int64_t c,
                                             const float (&weights)[2][kTaps][kWidth],
                                             GradientSums<kWidth> (&sums)[2]) {
  const int count = static_cast<int>(run.end - run.begin);
  std::int64_t at = (run.b * sizes.tokens + run.begin) * sizes.channels + c;
  std::int64_t next_at = at;
  // ahead[.][i] is d of token t + i; zeros past the sequence's end, which is `left` rows away.
  float ahead[2][kAhead][kWidth];
  std::int64_t left = sizes.tokens - run.begin;
  Place place(turns, run.begin, c);
  const auto load_next = [&](int i) {
    fill_zero(ahead[0][i]);
    fill_zero(ahead[1][i]);
    if (left > 0) {
      load_chunk<kWidth>(d.of[0] + next_at, ahead[0][i]);
      load_chunk<kWidth>(d.of[1] + next_at, ahead[1][i]);
      if constexpr (kTurns) {
        float rotation[kWidth];
        place.load(turns, rotation);
        turn(rotation, ahead[0][i]);
        turn(rotation, ahead[1][i]);
        place.next(turns);
      }
    }
    next_at += sizes.channels;
    --left;
  };
#pragma unroll
  for (int i = 0; i < kTaps - 1; ++i) load_next(i);
  for (int done = 0; done < count; done += kBackwardBatch) {
    float inputs[kBackwardBatch][kWidth];
#pragma unroll
    for (int i = 0; i < kBackwardBatch; ++i) {
      load_next(kTaps - 1 + i);
      fill_zero(inputs[i]);
      if (done + i < count) load_chunk<kWidth>(p + at + i * sizes.channels, inputs[i]);
    }
#pragma unroll
    for (int i = 0; i < kBackwardBatch; ++i, at += sizes.channels) {
      if (done + i >= count) continue;
      float sum[kWidth];
      fill_zero(sum);
#pragma unroll
      for (int which = 0; which < 2; ++which) {
#pragma unroll
        for (int lag = 0; lag < kTaps; ++lag) {
          add_product(inputs[i], ahead[which][i + lag], sums[which].weight[lag]);
          if (lag < sizes.window) add_product(weights[which][lag], ahead[which][i + lag], sum);
        }
#pragma unroll
        for (int k = 0; k < kWidth; ++k) sums[which].bias[k] += ahead[which][i][k];
      }
      store_chunk<kWidth>(d_p + at, sum);
    }
    shift_window<kBackwardBatch>(ahead[0]);
    shift_window<kBackwardBatch>(ahead[1]);
  }
}

// partial [2, P, C W + C], of q and of k: the weights' columns, then the bias's.
template <bool kTurns, typename T>
__global__ void __launch_bounds__(kWarpLanes* kBackwardGroups, 3)
    shared_qk_backward_kernel(const T* __restrict__ p, Parameters parameters, Rows<const T> d,
                              T* __restrict__ d_p, float* __restrict__ partial, Turns turns,
                              Sizes sizes, std::int64_t tiles, std::int64_t partial_rows) {
  const std::int64_t tile = blockIdx.x % tiles * (kWarpLanes * kWidth);
  const std::int64_t block = blockIdx.x / tiles;
  const std::int64_t c = tile + threadIdx.x * kWidth;
  float weights[2][kTaps][kWidth];
  load_both_weights<kBackwardGroups>(parameters, sizes, tile, weights);
  GradientSums<kWidth> sums[2];
  const std::int64_t num_runs = c < sizes.channels ? sizes.runs() : 0;
  for (std::int64_t index = block * kBackwardGroups + threadIdx.y; index < num_runs;
       index += partial_rows * kBackwardGroups) {
    backward_run<kTurns>(p, d, d_p, turns, sizes, run_of(sizes, index), c, weights, sums);
  }
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    float* const columns =
        partial + (which * partial_rows + block) * sizes.channels * (sizes.window + 1);
#pragma unroll
    for (int lag = 0; lag < kTaps; ++lag) {
      for_each_group_sum<kBackwardGroups>(sums[which].weight[lag], [&](int channel, float sum) {
        const std::int64_t j = sizes.window - 1 - lag;
        const std::int64_t column = tile + channel;
        if (j >= 0 && column < sizes.channels) columns[column * sizes.window + j] = sum;
      });
    }
    for_each_group_sum<kBackwardGroups>(sums[which].bias, [&](int channel, float sum) {
      const std::int64_t column = tile + channel;
      if (column < sizes.channels) columns[sizes.channels * sizes.window + column] = sum;
    });
  }
}

// [B, T, H, F] as [B, T, C].
TensorView channels_of(TensorView x) {
  return x.reshape({x.size(0), x.size(1), x.size(2) * x.size(3)});
}

std::int64_t tiles_of(const Sizes& sizes) {
  return (sizes.channels + kWarpLanes * kWidth - 1) / (kWarpLanes * kWidth);
}

Tensor table_of(TensorView p, const std::optional<RopeOptions>& rope, double sign, Stream& stream) {
  return rope ? rotation_table(p.size(1), p.size(3), *rope, sign, stream) : Tensor();
}
Turns turns_of(const Tensor& table) {
  if (table.empty()) return {nullptr, 1, kWidth};
  return {table.data<float>(), static_cast<int>(table.size(0)), static_cast<int>(table.size(1))};
}

// Calls f(element type, whether there is RoPE).
template <typename F>
void visit(DType dtype, bool turns, F&& f) {
  visit_activation_type(dtype, [&](auto zero) {
    if (turns) {
      f(zero, std::true_type{});
    } else {
      f(zero, std::false_type{});
    }
  });
}

}  // namespace

void shared_qk_forward(TensorView p, TensorView w_q, TensorView bias_q, TensorView w_k,
                       TensorView bias_k, TensorView history, TensorView q, TensorView k,
                       TensorView final_history, const std::optional<RopeOptions>& rope,
                       Stream& stream) {
  if (!is_one_pass(p, w_q, rope)) {
    causal_conv_forward(channels_of(p), w_q, bias_q, history, {}, channels_of(q), {}, stream);
    causal_conv_forward(channels_of(p), w_k, bias_k, history, {}, channels_of(k), final_history,
                        stream);
    if (rope) cuda::rope_forward(q, q, *rope, stream);
    if (rope) cuda::rope_forward(k, k, *rope, stream);
    return;
  }
  const Sizes sizes = sizes_of(channels_of(p), w_q);
  const Tensor table = table_of(p, rope, 1.0, stream);
  const Parameters parameters{{w_q.data<float>(), w_k.data<float>()},
                              {bias_q.data<float>(), bias_k.data<float>()}};
  visit(p.dtype(), rope.has_value(), [&](auto zero, auto turns) {
    using T = decltype(zero);
    TTT_CHECK(are_aligned(kWidth * sizeof(T), p.raw(), history.raw(), q.raw(), k.raw()),
              "p, q and k must begin at a multiple of {} bytes", kWidth * sizeof(T));
    const T* const past = history.empty() ? nullptr : history.data<T>();
    const std::int64_t blocks = (sizes.runs() + kGroups - 1) / kGroups;
    launch(shared_qk_forward_kernel<decltype(turns)::value, T>,
           shape_of(tiles_of(sizes), blocks, 1), stream, p.data<T>(), parameters, past,
           Rows<T>{{q.data<T>(), k.data<T>()}}, turns_of(table), sizes, tiles_of(sizes));
    if (final_history.empty()) return;
    launch(history_kernel<T>, elementwise_shape(sizes.batch * sizes.channels), stream, p.data<T>(),
           past, final_history.data<T>(), sizes);
  });
}

void shared_qk_backward(TensorView p, TensorView w_q, TensorView w_k, TensorView d_q,
                        TensorView d_k, TensorView d_p, TensorView d_w_q, TensorView d_bias_q,
                        TensorView d_w_k, TensorView d_bias_k,
                        const std::optional<RopeOptions>& rope, Stream& stream) {
  if (p.numel() == 0) return;
  if (!is_one_pass(p, w_q, rope)) {
    if (rope) cuda::rope_backward(d_q, d_q, *rope, stream);
    if (rope) cuda::rope_backward(d_k, d_k, *rope, stream);
    const Tensor through_k(p.shape(), p.dtype());
    causal_conv_backward(channels_of(p), w_k, channels_of(d_k), {}, channels_of(through_k), d_w_k,
                         d_bias_k, stream);
    causal_conv_backward(channels_of(p), w_q, channels_of(d_q), channels_of(through_k),
                         channels_of(d_p), d_w_q, d_bias_q, stream);
    return;
  }
  const Sizes sizes = sizes_of(channels_of(p), w_q);
  const Tensor table = table_of(p, rope, -1.0, stream);
  const std::int64_t blocks =
      std::min((sizes.runs() + kBackwardGroups - 1) / kBackwardGroups, kMaxPartialRows);
  const std::int64_t width = sizes.channels * (sizes.window + 1);
  const Tensor partial(Shape{2 * blocks, width}, DType::kF32);
  const Parameters parameters{{w_q.data<float>(), w_k.data<float>()}, {}};
  visit(p.dtype(), rope.has_value(), [&](auto zero, auto turns) {
    using T = decltype(zero);
    TTT_CHECK(are_aligned(kWidth * sizeof(T), p.raw(), d_q.raw(), d_k.raw(), d_p.raw()),
              "p, d_q, d_k and d_p must begin at a multiple of {} bytes", kWidth * sizeof(T));
    launch(shared_qk_backward_kernel<decltype(turns)::value, T>,
           shape_of(tiles_of(sizes), blocks, 1, kBackwardGroups), stream, p.data<T>(), parameters,
           Rows<const T>{{d_q.data<T>(), d_k.data<T>()}}, d_p.data<T>(), partial.data<float>(),
           turns_of(table), sizes, tiles_of(sizes), blocks);
  });
  add_column_sums(partial.view().slice(0, blocks), d_w_q, d_bias_q, stream);
  add_column_sums(partial.view().slice(blocks, 2 * blocks), d_w_k, d_bias_k, stream);
}

}  // namespace ttt::kernels::cuda
