#include "kernels/cuda/conv_runs.h"
#include "kernels/cuda/norm_conv_path.h"
#include "kernels/cuda/ops.h"
#include "kernels/norm_conv.h"

namespace ttt::kernels::cuda {
namespace {

using namespace conv;  // NOLINT(google-build-using-namespace): what it shares with causal_conv.cu

// A block holds all channels of a row, four a thread, and walks down a run of tokens of one sequence.
constexpr int kMaxThreads = 512;
constexpr int kRowRun = 16;        // tokens; forward norms the W - 1 rows before them again
constexpr int kBackwardBatch = 2;  // tokens whose loads are under way together
constexpr std::int64_t kMaxBackwardBlocks = 264;  // twice the multiprocessors of an H100

Sizes row_sizes_of(TensorView x, TensorView w) {
  return {x.size(0), x.size(1), x.size(2), w.size(-1), (x.size(1) + kRowRun - 1) / kRowRun};
}

__device__ __forceinline__ Run row_run_of(const Sizes& sizes, std::int64_t index) {
  const std::int64_t b = index / sizes.runs_per_sequence;
  const std::int64_t begin = (index - b * sizes.runs_per_sequence) * kRowRun;
  const std::int64_t end = begin + kRowRun;
  return {b, begin, end < sizes.tokens ? end : sizes.tokens};
}

// What of a thread's channels does not change from row to row; zeros past the row's end.
struct Channels {
  float norm[kWidth];
  float weights[kTaps][kWidth];  // by lag
};

__device__ __forceinline__ void load_channels(const float* norm_w, const float* w,
                                              const Sizes& sizes, std::int64_t c,
                                              Channels& channels) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const bool is_inside = c < sizes.channels;
    channels.norm[i] = is_inside ? norm_w[c + i] : 0.0F;
#pragma unroll
    for (int lag = 0; lag < kTaps; ++lag) {
      channels.weights[lag][i] =
          is_inside && lag < sizes.window ? w[(c + i + 1) * sizes.window - 1 - lag] : 0.0F;
    }
  }
}

__device__ __forceinline__ float dot(const float (&a)[kWidth], const float (&b)[kWidth]) {
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sum += a[i] * b[i];
  return sum;
}

__device__ __forceinline__ float rstd_of(float squares, const Sizes& sizes, float epsilon) {
  return rsqrtf(squares / static_cast<float>(sizes.channels) + epsilon);
}

// Makes the normed rows of the rows x. `shared` alternates between two calls (block_sum).
template <int kRows>
__device__ __forceinline__ void norm_rows(const float (&x)[kRows][kWidth], const Channels& channels,
                                          const Sizes& sizes, float epsilon, float* shared,
                                          float (*normed)[kWidth]) {
  float squares[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) squares[i] = dot(x[i], x[i]);
  block_sum(squares, shared);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float rstd = rstd_of(squares[i], sizes, epsilon);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) normed[i][k] = channels.norm[k] * (x[i][k] * rstd);
  }
}

template <typename T>
__global__ void __launch_bounds__(kMaxThreads, 1)
    norm_conv_forward_kernel(const T* __restrict__ x, const float* __restrict__ norm_w,
                             const float* __restrict__ w, const float* __restrict__ bias,
                             const T* __restrict__ history, T* __restrict__ y, Sizes sizes,
                             float epsilon) {
  __shared__ float buffers[2][kBatch * kMaxWarps];
  const Run run = row_run_of(sizes, blockIdx.x);
  const std::int64_t c = threadIdx.x * kWidth;
  const bool is_inside = c < sizes.channels;
  Channels channels;
  load_channels(norm_w, w, sizes, c, channels);
  float offset[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) offset[i] = is_inside ? bias[c + i] : 0.0F;
  // inputs[i] is the normed row of token t + i - (kTaps - 1).
  float inputs[kTaps - 1 + kBatch][kWidth];
  {
    float rows[kTaps - 1][kWidth];
#pragma unroll
    for (int i = 0; i < kTaps - 1; ++i) {
      const int back = kTaps - 1 - i;
      fill_zero(rows[i]);
      if (back >= sizes.window || !is_inside) continue;
      const T* const row = input_row(x, history, sizes, run.b, run.begin - back);
      if (row != nullptr) load_chunk<kWidth>(row + c, rows[i]);
    }
    norm_rows(rows, channels, sizes, epsilon, buffers[1], inputs);
  }
  const int count = static_cast<int>(run.end - run.begin);
  std::int64_t at = (run.b * sizes.tokens + run.begin) * sizes.channels + c;
  int parity = 0;
  for (int done = 0; done < count; done += kBatch, parity ^= 1) {
    float rows[kBatch][kWidth];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      fill_zero(rows[i]);
      if (is_inside && done + i < count) load_chunk<kWidth>(x + at + i * sizes.channels, rows[i]);
    }
    norm_rows(rows, channels, sizes, epsilon, buffers[parity], inputs + kTaps - 1);
#pragma unroll
    for (int i = 0; i < kBatch; ++i, at += sizes.channels) {
      if (!is_inside || done + i >= count) continue;
      float sum[kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum[k] = offset[k];
#pragma unroll
      for (int lag = 0; lag < kTaps; ++lag) {
        add_product(channels.weights[lag], inputs[kTaps - 1 + i - lag], sum);
      }
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum[k] += rows[i][k];
      store_chunk<kWidth>(y + at, sum);
    }
    shift_window<kBatch>(inputs);
  }
}

struct BackwardSums {
  float weight[kTaps][kWidth] = {};
  float bias[kWidth] = {};
  float norm[kWidth] = {};
};

// d_n[t] = sum over lags of w[lag] d_y[t + lag];  d_x[t] = d_y[t] + the norm's backward of d_n[t];
// d_w[lag] = sum over t of n[t] d_y[t + lag], n the normed row.
template <typename T>
__device__ __forceinline__ void backward_run(const T* __restrict__ x, const T* __restrict__ d_y,
                                             T* __restrict__ d_x, const Sizes& sizes,
                                             const Run& run, std::int64_t c,
                                             const Channels& channels, float epsilon,
                                             float (*buffers)[2 * kBackwardBatch * kMaxWarps],
                                             int& parity, BackwardSums& sums) {
  const bool is_inside = c < sizes.channels;
  const int count = static_cast<int>(run.end - run.begin);
  std::int64_t at = (run.b * sizes.tokens + run.begin) * sizes.channels + c;
  // ahead[i] is d_y of token t + i; zeros past the sequence's end, which is `left` rows away.
  float ahead[kTaps - 1 + kBackwardBatch][kWidth];
  std::int64_t next_at = at;
  std::int64_t left = is_inside ? sizes.tokens - run.begin : 0;
  const auto load_next = [&](float(&to)[kWidth]) {
    fill_zero(to);
    if (left > 0) load_chunk<kWidth>(d_y + next_at, to);
    next_at += sizes.channels;
    --left;
  };
#pragma unroll
  for (int i = 0; i < kTaps - 1; ++i) load_next(ahead[i]);
  for (int done = 0; done < count; done += kBackwardBatch, parity ^= 1) {
    float rows[kBackwardBatch][kWidth], d_normed[kBackwardBatch][kWidth];
    float totals[2 * kBackwardBatch];  // squares of x, then <norm_w d_n, x>
#pragma unroll
    for (int i = 0; i < kBackwardBatch; ++i) {
      load_next(ahead[kTaps - 1 + i]);
      fill_zero(rows[i]);
      if (is_inside && done + i < count) load_chunk<kWidth>(x + at + i * sizes.channels, rows[i]);
    }
#pragma unroll
    for (int i = 0; i < kBackwardBatch; ++i) {
      fill_zero(d_normed[i]);
#pragma unroll
      for (int lag = 0; lag < kTaps; ++lag) {
        add_product(channels.weights[lag], ahead[i + lag], d_normed[i]);
      }
      float scaled[kWidth] = {};
      add_product(channels.norm, d_normed[i], scaled);
      totals[i] = dot(rows[i], rows[i]);
      totals[kBackwardBatch + i] = dot(scaled, rows[i]);
    }
    block_sum(totals, buffers[parity]);
#pragma unroll
    for (int i = 0; i < kBackwardBatch; ++i, at += sizes.channels) {
      if (!is_inside || done + i >= count) continue;
      const float rstd = rstd_of(totals[i], sizes, epsilon);
      const float mean = totals[kBackwardBatch + i] * rstd / static_cast<float>(sizes.channels);
      float normed[kWidth], d[kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const float normalized = rows[i][k] * rstd;
        normed[k] = channels.norm[k] * normalized;
        sums.norm[k] += d_normed[i][k] * normalized;
        sums.bias[k] += ahead[i][k];
        d[k] = rstd * (channels.norm[k] * d_normed[i][k] - normalized * mean) + ahead[i][k];
      }
#pragma unroll
      for (int lag = 0; lag < kTaps; ++lag) add_product(normed, ahead[i + lag], sums.weight[lag]);
      store_chunk<kWidth>(d_x + at, d);
    }
    shift_window<kBackwardBatch>(ahead);
  }
}

// of_conv [P, C W + C]: the weights' columns, then the bias's; of_norm [P, C].
template <typename T>
__global__ void __launch_bounds__(kMaxThreads, 1)
    norm_conv_backward_kernel(const T* __restrict__ x, const float* __restrict__ norm_w,
                              const float* __restrict__ w, const T* __restrict__ d_y,
                              T* __restrict__ d_x, float* __restrict__ of_conv,
                              float* __restrict__ of_norm, Sizes sizes, float epsilon) {
  __shared__ float buffers[2][2 * kBackwardBatch * kMaxWarps];
  const std::int64_t c = threadIdx.x * kWidth;
  Channels channels;
  load_channels(norm_w, w, sizes, c, channels);
  BackwardSums sums;
  int parity = 0;
  for (std::int64_t index = blockIdx.x; index < sizes.runs(); index += gridDim.x) {
    backward_run(x, d_y, d_x, sizes, row_run_of(sizes, index), c, channels, epsilon, buffers,
                 parity, sums);
  }
  if (c >= sizes.channels) return;
  float* const columns = of_conv + blockIdx.x * sizes.channels * (sizes.window + 1);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
#pragma unroll
    for (int lag = 0; lag < kTaps; ++lag) {
      if (lag >= sizes.window) continue;
      columns[(c + i + 1) * sizes.window - 1 - lag] = sums.weight[lag][i];
    }
    columns[sizes.channels * sizes.window + c + i] = sums.bias[i];
    of_norm[blockIdx.x * sizes.channels + c + i] = sums.norm[i];
  }
}

dim3 block_of(const Sizes& sizes) {
  const std::int64_t threads = (sizes.channels + kWidth - 1) / kWidth;
  return dim3(static_cast<unsigned>((threads + kWarpLanes - 1) / kWarpLanes * kWarpLanes));
}

// [B, T, C] as [B T, C].
TensorView rows_of(TensorView x) { return x.reshape({x.size(0) * x.size(1), x.size(2)}); }

Tensor normed_rows(TensorView x, TensorView norm_w, TensorView rstd, double epsilon,
                   Stream& stream) {
  Tensor normed(x.shape(), x.dtype());
  if (x.numel() > 0) rms_norm_forward(rows_of(x), norm_w, rows_of(normed), rstd, epsilon, stream);
  return normed;
}

}  // namespace

void norm_conv_forward(TensorView x, TensorView norm_w, TensorView w, TensorView bias,
                       TensorView history, TensorView y, TensorView final_history, double epsilon,
                       Stream& stream) {
  const Sizes sizes = row_sizes_of(x, w);
  visit_activation_type(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const past = history.empty() ? nullptr : history.data<T>();
    if (is_one_pass(x, w) && are_aligned(kWidth * sizeof(T), x.raw(), history.raw(), y.raw())) {
      launch(norm_conv_forward_kernel<T>,
             {dim3(static_cast<unsigned>(sizes.runs())), block_of(sizes)}, stream, x.data<T>(),
             norm_w.data<float>(), w.data<float>(), bias.data<float>(), past, y.data<T>(), sizes,
             static_cast<float>(epsilon));
    } else {
      const Tensor normed = normed_rows(x, norm_w, {}, epsilon, stream);
      const Tensor normed_past =
          history.empty() ? Tensor() : normed_rows(history, norm_w, {}, epsilon, stream);
      causal_conv_forward(normed, w, bias, normed_past, x, y, {}, stream);
    }
    if (final_history.empty()) return;
    launch(history_kernel<T>, elementwise_shape(sizes.batch * sizes.channels), stream, x.data<T>(),
           past, final_history.data<T>(), sizes);
  });
}

void norm_conv_backward(TensorView x, TensorView norm_w, TensorView w, TensorView d_y,
                        TensorView d_x, TensorView d_norm_w, TensorView d_w, TensorView d_bias,
                        double epsilon, Stream& stream) {
  if (x.numel() == 0) return;
  const Sizes sizes = row_sizes_of(x, w);
  if (!is_one_pass(x, w) || !are_aligned(16, x.raw(), d_y.raw(), d_x.raw())) {
    const Tensor rstd({x.size(0) * x.size(1)}, DType::kF32);
    const Tensor normed = normed_rows(x, norm_w, rstd, epsilon, stream);
    const Tensor d_normed(x.shape(), x.dtype());
    causal_conv_backward(normed, w, d_y, {}, d_normed, d_w, d_bias, stream);
    rms_norm_backward(rows_of(x), norm_w, rstd, rows_of(d_normed), rows_of(d_y), rows_of(d_x),
                      d_norm_w, stream);
    return;
  }
  const std::int64_t blocks = std::min(sizes.runs(), kMaxBackwardBlocks);
  const Tensor of_conv(Shape{blocks, sizes.channels * (sizes.window + 1)}, DType::kF32);
  const Tensor of_norm(Shape{blocks, sizes.channels}, DType::kF32);
  visit_activation_type(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    launch(norm_conv_backward_kernel<T>, {dim3(static_cast<unsigned>(blocks)), block_of(sizes)},
           stream, x.data<T>(), norm_w.data<float>(), w.data<float>(), d_y.data<T>(), d_x.data<T>(),
           of_conv.data<float>(), of_norm.data<float>(), sizes, static_cast<float>(epsilon));
  });
  add_column_sums(of_conv, d_w, d_bias, stream);
  add_column_sums(of_norm, d_norm_w, {}, stream);
}

}  // namespace ttt::kernels::cuda
