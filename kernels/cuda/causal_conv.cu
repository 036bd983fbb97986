#include "kernels/causal_conv.h"
#include "kernels/cuda/conv_runs.h"
#include "kernels/cuda/ops.h"

namespace ttt::kernels::cuda {
namespace {

using namespace conv;  // NOLINT(google-build-using-namespace): what it shares with shared_qk.cu

// sum += the weights of a lag beyond kTaps, from memory, times a row's chunk.
template <int kCount, typename T>
__device__ __forceinline__ void add_far_tap(const float* w, const Sizes& sizes, std::int64_t c,
                                            std::int64_t lag, const T* row, float (&sum)[kCount]) {
  float weights[kCount], values[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) weights[i] = w[(c + i + 1) * sizes.window - 1 - lag];
  load_chunk<kCount>(row, values);
  add_product(weights, values, sum);
}

template <int kCount, bool kIsWide, typename T>
__global__ void __launch_bounds__(kThreads, kIsWide ? 1 : 2)
    forward_kernel(const T* __restrict__ x, const float* __restrict__ w,
                   const float* __restrict__ bias, const T* __restrict__ history,
                   const T* __restrict__ residual, T* __restrict__ y, Sizes sizes,
                   std::int64_t tiles) {
  const std::int64_t tile = blockIdx.x % tiles * (kWarpLanes * kCount);
  float weights[kTaps][kCount];
  load_weights(w, sizes, tile, weights);
  const std::int64_t c = tile + threadIdx.x * kCount;
  const std::int64_t index = blockIdx.x / tiles * kGroups + threadIdx.y;
  if (c >= sizes.channels || index >= sizes.runs()) return;  // no barrier follows
  const Run run = run_of(sizes, index);
  float offset[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) offset[i] = bias[c + i];
  // inputs[i] is that of token t + i - (kTaps - 1).
  float inputs[kTaps - 1 + kBatch][kCount];
#pragma unroll
  for (int i = 0; i < kTaps - 1; ++i) {
    const int back = kTaps - 1 - i;
    fill_zero(inputs[i]);
    if (back >= sizes.window) continue;
    const T* const row = input_row(x, history, sizes, run.b, run.begin - back);
    if (row != nullptr) load_chunk<kCount>(row + c, inputs[i]);
  }
  const int count = static_cast<int>(run.end - run.begin);
  const std::int64_t start = (run.b * sizes.tokens + run.begin) * sizes.channels + c;
  const T* x_row = x + start;
  T* y_row = y + start;
  for (int done = 0; done < count; done += kBatch) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i, x_row += sizes.channels) {
      fill_zero(inputs[kTaps - 1 + i]);
      if (done + i < count) load_chunk<kCount>(x_row, inputs[kTaps - 1 + i]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i, y_row += sizes.channels) {
      float sum[kCount];
#pragma unroll
      for (int k = 0; k < kCount; ++k) sum[k] = offset[k];
#pragma unroll
      for (int lag = 0; lag < kTaps; ++lag) {
        if (lag < sizes.window) add_product(weights[lag], inputs[kTaps - 1 + i - lag], sum);
      }
      if (done + i >= count) continue;
      if constexpr (kIsWide) {
        for (std::int64_t lag = kTaps; lag < sizes.window; ++lag) {
          const T* const row = input_row(x, history, sizes, run.b, run.begin + done + i - lag);
          if (row != nullptr) add_far_tap(w, sizes, c, lag, row + c, sum);
        }
      }
      if (residual != nullptr) add_chunk<kCount>(residual + (y_row - y), sum);
      store_chunk<kCount>(y_row, sum);
    }
    shift_window<kBatch>(inputs);
  }
}

// d_x[t] = sum over lags of w[lag] d_y[t + lag];  d_w[lag] = sum over t of x[t] d_y[t + lag], for t of the run and lags
// first_lag .. first_lag + kTaps - 1. d_x and the bias's sums are for first_lag 0 alone.
template <bool kIsWide, int kCount, typename T>
__device__ __forceinline__ void backward_run(const T* __restrict__ x, const float* __restrict__ w,
                                             const T* __restrict__ d_y,
                                             const T* __restrict__ d_beside, T* __restrict__ d_x,
                                             const Sizes& sizes, const Run& run, std::int64_t c,
                                             std::int64_t first_lag,
                                             const float (&weights)[kTaps][kCount],
                                             GradientSums<kCount>& sums) {
  const std::int64_t start = (run.b * sizes.tokens + run.begin) * sizes.channels + c;
  const T* x_row = x + start;
  T* d_x_row = d_x + start;
  const int count = static_cast<int>(run.end - run.begin);
  // ahead[i] is d_y of token t + first_lag + i; zeros past the sequence's end, which is `left` rows of d_y away.
  float ahead[kTaps - 1 + kBatch][kCount];
  const T* d_y_row = d_y + start + first_lag * sizes.channels;
  std::int64_t left = sizes.tokens - run.begin - first_lag;
  const auto load_next = [&](float(&to)[kCount]) {
    fill_zero(to);
    if (left > 0) load_chunk<kCount>(d_y_row, to);
    d_y_row += sizes.channels;
    --left;
  };
#pragma unroll
  for (int i = 0; i < kTaps - 1; ++i) load_next(ahead[i]);
  for (int done = 0; done < count; done += kBatch) {
    float inputs[kBatch][kCount];
#pragma unroll
    for (int i = 0; i < kBatch; ++i, x_row += sizes.channels) {
      load_next(ahead[kTaps - 1 + i]);
      fill_zero(inputs[i]);
      if (done + i < count) load_chunk<kCount>(x_row, inputs[i]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i, d_x_row += sizes.channels) {
      if (done + i >= count) continue;
      float sum[kCount];
      fill_zero(sum);
#pragma unroll
      for (int lag = 0; lag < kTaps; ++lag) {
        add_product(inputs[i], ahead[i + lag], sums.weight[lag]);
        if (lag < sizes.window) add_product(weights[lag], ahead[i + lag], sum);
      }
      if (kIsWide && first_lag != 0) continue;
#pragma unroll
      for (int k = 0; k < kCount; ++k) sums.bias[k] += ahead[i][k];
      if constexpr (kIsWide) {
        const std::int64_t t = run.begin + done + i;
        for (std::int64_t lag = kTaps; lag < sizes.window && t + lag < sizes.tokens; ++lag) {
          const std::int64_t token = run.b * sizes.tokens + t + lag;
          add_far_tap(w, sizes, c, lag, d_y + token * sizes.channels + c, sum);
        }
      }
      if (d_beside != nullptr) add_chunk<kCount>(d_beside + (d_x_row - d_x), sum);
      store_chunk<kCount>(d_x_row, sum);
    }
    shift_window<kBatch>(ahead);
  }
}

// Blocks with blockIdx.y = g sum the weights of lags 4 g .. 4 g + 3.
// partial [P, C W + C]: the weights' columns, then the bias's.
template <int kCount, bool kIsWide, typename T>
__global__ void __launch_bounds__(kThreads, kIsWide ? 1 : 2)
    backward_kernel(const T* __restrict__ x, const float* __restrict__ w, const T* __restrict__ d_y,
                    const T* __restrict__ d_beside, T* __restrict__ d_x,
                    float* __restrict__ partial, Sizes sizes, std::int64_t tiles,
                    std::int64_t partial_rows) {
  const std::int64_t tile = blockIdx.x % tiles * (kWarpLanes * kCount);
  const std::int64_t block = blockIdx.x / tiles;
  const std::int64_t first_lag = kIsWide ? static_cast<std::int64_t>(blockIdx.y) * kTaps : 0;
  const std::int64_t c = tile + threadIdx.x * kCount;
  float weights[kTaps][kCount];
  load_weights(w, sizes, tile, weights);
  GradientSums<kCount> sums;
  const std::int64_t num_runs = c < sizes.channels ? sizes.runs() : 0;
  for (std::int64_t index = block * kGroups + threadIdx.y; index < num_runs;
       index += partial_rows * kGroups) {
    backward_run<kIsWide>(x, w, d_y, d_beside, d_x, sizes, run_of(sizes, index), c, first_lag,
                          weights, sums);
  }
  float* const columns = partial + block * sizes.channels * (sizes.window + 1);
#pragma unroll
  for (int lag = 0; lag < kTaps; ++lag) {
    for_each_group_sum(sums.weight[lag], [&](int channel, float sum) {
      const std::int64_t j = sizes.window - 1 - first_lag - lag;
      const std::int64_t column = tile + channel;
      if (j >= 0 && column < sizes.channels) columns[column * sizes.window + j] = sum;
    });
  }
  if (first_lag != 0) return;
  for_each_group_sum(sums.bias, [&](int channel, float sum) {
    const std::int64_t column = tile + channel;
    if (column < sizes.channels) columns[sizes.channels * sizes.window + column] = sum;
  });
}

// Calls f(chunk's width, whether the window is wide, number of tiles).
template <typename T, typename F, typename... Pointers>
void visit_tiles(const Sizes& sizes, F&& f, Pointers... pointers) {
  const bool is_aligned = are_aligned(kWidth * sizeof(T), pointers...);
  visit_chunk<kWidth>(is_aligned && sizes.channels % kWidth == 0, [&](auto width) {
    const std::int64_t tile = kWarpLanes * decltype(width)::value;
    const std::int64_t tiles = (sizes.channels + tile - 1) / tile;
    if (sizes.window > kTaps) {
      f(width, std::true_type{}, tiles);
    } else {
      f(width, std::false_type{}, tiles);
    }
  });
}

}  // namespace

void causal_conv_forward(TensorView x, TensorView w, TensorView bias, TensorView history,
                         TensorView residual, TensorView y, TensorView final_history,
                         Stream& stream) {
  const Sizes sizes = sizes_of(x, w);
  visit_activation_type(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const past = history.empty() ? nullptr : history.data<T>();
    const T* const beside = residual.empty() ? nullptr : residual.data<T>();
    const auto start = [&](auto width, auto is_wide, std::int64_t tiles) {
      const std::int64_t blocks = (sizes.runs() + kGroups - 1) / kGroups;
      launch(forward_kernel<decltype(width)::value, decltype(is_wide)::value, T>,
             shape_of(tiles, blocks, 1), stream, x.data<T>(), w.data<float>(), bias.data<float>(),
             past, beside, y.data<T>(), sizes, tiles);
    };
    visit_tiles<T>(sizes, start, x.raw(), history.raw(), residual.raw(), y.raw());
    if (final_history.empty()) return;
    launch(history_kernel<T>, elementwise_shape(sizes.batch * sizes.channels), stream, x.data<T>(),
           past, final_history.data<T>(), sizes);
  });
}

void causal_conv_backward(TensorView x, TensorView w, TensorView d_y, TensorView d_beside,
                          TensorView d_x, TensorView d_w, TensorView d_bias, Stream& stream) {
  const Sizes sizes = sizes_of(x, w);
  if (x.numel() == 0) return;
  const std::int64_t blocks = std::min((sizes.runs() + kGroups - 1) / kGroups, kMaxPartialRows);
  const Tensor partial(Shape{blocks, sizes.channels * (sizes.window + 1)}, DType::kF32);
  const std::int64_t lag_groups = (sizes.window + kTaps - 1) / kTaps;
  visit_activation_type(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const beside = d_beside.empty() ? nullptr : d_beside.data<T>();
    const auto start = [&](auto width, auto is_wide, std::int64_t tiles) {
      launch(backward_kernel<decltype(width)::value, decltype(is_wide)::value, T>,
             shape_of(tiles, blocks, lag_groups), stream, x.data<T>(), w.data<float>(),
             d_y.data<T>(), beside, d_x.data<T>(), partial.data<float>(), sizes, tiles, blocks);
    };
    visit_tiles<T>(sizes, start, x.raw(), d_y.raw(), d_beside.raw(), d_x.raw());
  });
  add_column_sums(partial, d_w, d_bias, stream);
}

}  // namespace ttt::kernels::cuda
