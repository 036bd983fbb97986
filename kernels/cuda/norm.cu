#include "kernels/cuda/activation_math.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/simt.h"
#include "kernels/norm.h"

namespace ttt::kernels::cuda {
namespace {

// A block owns a row at a time and a thread the same channels of every row, so that weights and the sums over rows stay
// in registers. Rows wider than the block's panel of channels are read once for the sums and again for the rest.
constexpr int kPerThread = 8;
constexpr int kMaxThreads = 512;
constexpr std::int64_t kMaxForwardBlocks = 2048;
constexpr std::int64_t kMaxPartialRows = 512;  // about what runs at once on 132 multiprocessors
constexpr std::int64_t kRowsPerBlock = 8;      // at least, while there are enough

__device__ __forceinline__ int panel_channels() {
  return static_cast<int>(blockDim.x) * kPerThread;
}

// The thread's channels are chunks threadIdx.x, threadIdx.x + blockDim.x, ... of the panel; zeros past the row's end.
template <int kWidth>
__device__ __forceinline__ int chunk_channel(int panel, int chunk) {
  return panel + static_cast<int>(chunk * blockDim.x + threadIdx.x) * kWidth;
}

template <int kWidth, typename T>
__device__ __forceinline__ void load_panel(const T* row, int panel, int channels,
                                           float (&values)[kPerThread]) {
#pragma unroll
  for (int chunk = 0; chunk < kPerThread / kWidth; ++chunk) {
    const int c = chunk_channel<kWidth>(panel, chunk);
    float* const to = values + chunk * kWidth;
    if (c < channels) {
      load_chunk<kWidth>(row + c, to);
    } else {
      for (int i = 0; i < kWidth; ++i) to[i] = 0.0F;
    }
  }
}

template <int kWidth, typename T>
__device__ __forceinline__ void store_panel(T* row, int panel, int channels,
                                            const float (&values)[kPerThread]) {
#pragma unroll
  for (int chunk = 0; chunk < kPerThread / kWidth; ++chunk) {
    const int c = chunk_channel<kWidth>(panel, chunk);
    if (c < channels) store_chunk<kWidth>(row + c, values + chunk * kWidth);
  }
}

// Adds `sums` to the block's partial row, or begins it, and zeroes them.
template <int kWidth>
__device__ __forceinline__ void flush_panel(float* partial, int panel, int channels, bool is_first,
                                            float (&sums)[kPerThread]) {
  float before[kPerThread] = {};
  if (!is_first) load_panel<kWidth>(partial, panel, channels, before);
  for (int i = 0; i < kPerThread; ++i) before[i] += sums[i];
  store_panel<kWidth>(partial, panel, channels, before);
  for (int i = 0; i < kPerThread; ++i) sums[i] = 0.0F;
}

// The channels that lie past the row's end must not count as deviations from the mean.
template <int kWidth>
__device__ __forceinline__ void center_panel(int panel, int channels, float mean,
                                             float (&values)[kPerThread]) {
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    values[i] = chunk_channel<kWidth>(panel, i / kWidth) < channels ? values[i] - mean : 0.0F;
  }
}

struct Moments {
  float mean;
  float variance;
};

// Mean and variance of a row by two passes over its registers; `values` are those of the last panel, not centred. The
// second pass also finds by how much the rounded mean is off.
template <int kWidth, typename T>
__device__ __forceinline__ Moments layer_moments(const T* row, int channels,
                                                 float (*buffers)[2 * kMaxWarps],
                                                 float (&values)[kPerThread]) {
  const float inverse = 1.0F / static_cast<float>(channels);
  const int step = panel_channels();
  float sum[1] = {0.0F};
  for (int panel = 0; panel < channels; panel += step) {
    load_panel<kWidth>(row, panel, channels, values);
    for (int i = 0; i < kPerThread; ++i) sum[0] += values[i];
  }
  block_sum(sum, buffers[0]);
  const float mean = sum[0] * inverse;
  float sums[2] = {0.0F, 0.0F};
  for (int panel = 0; panel < channels; panel += step) {
    if (step < channels) load_panel<kWidth>(row, panel, channels, values);
    float centered[kPerThread];
    for (int i = 0; i < kPerThread; ++i) centered[i] = values[i];
    center_panel<kWidth>(panel, channels, mean, centered);
    for (int i = 0; i < kPerThread; ++i) {
      sums[0] += centered[i] * centered[i];
      sums[1] += centered[i];
    }
  }
  block_sum(sums, buffers[1]);
  const float shift = sums[1] * inverse;
  const float variance = sums[0] * inverse - shift * shift;
  return {mean + shift, variance < 0.0F ? 0.0F : variance};  // keeps NaN
}

// RMSNorm is LayerNorm with a mean of 0 and no bias.
template <bool kIsLayer, int kWidth, typename T>
__global__ void __launch_bounds__(kMaxThreads)
    forward_kernel(const T* x, const float* w, const float* b, const T* gate, T* y, float* mean_out,
                   float* rstd_out, float epsilon, std::int64_t rows, int channels) {
  __shared__ float buffers[2][2 * kMaxWarps];
  const int step = panel_channels();
  float values[kPerThread] = {}, weights[kPerThread], bias[kPerThread];
  load_panel<kWidth>(w, 0, channels, weights);
  if constexpr (kIsLayer) load_panel<kWidth>(b, 0, channels, bias);
  int parity = 0;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x, parity ^= 1) {
    const T* const x_row = x + row * channels;
    Moments moments{0.0F, 0.0F};
    if constexpr (kIsLayer) {
      moments = layer_moments<kWidth>(x_row, channels, buffers, values);
    } else {
      float sum[1] = {0.0F};
      for (int panel = 0; panel < channels; panel += step) {
        load_panel<kWidth>(x_row, panel, channels, values);
        for (int i = 0; i < kPerThread; ++i) sum[0] += values[i] * values[i];
      }
      block_sum(sum, buffers[parity]);
      moments.variance = sum[0] / static_cast<float>(channels);
    }
    const float rstd = rsqrtf(moments.variance + epsilon);
    if (threadIdx.x == 0) {
      if (mean_out != nullptr) mean_out[row] = moments.mean;
      if (rstd_out != nullptr) rstd_out[row] = rstd;
    }
    for (int panel = 0; panel < channels; panel += step) {
      if (step < channels) {
        load_panel<kWidth>(x_row, panel, channels, values);
        load_panel<kWidth>(w, panel, channels, weights);
        if constexpr (kIsLayer) load_panel<kWidth>(b, panel, channels, bias);
      }
      for (int i = 0; i < kPerThread; ++i) {
        values[i] = weights[i] * ((values[i] - moments.mean) * rstd);
        if constexpr (kIsLayer) values[i] += bias[i];
      }
      if (kIsLayer && gate != nullptr) {
        float gates[kPerThread];
        load_panel<kWidth>(gate + row * channels, panel, channels, gates);
        for (int i = 0; i < kPerThread; ++i) {
          values[i] *= GeluTanh<DeviceMath>::at(gates[i]).value;
        }
      }
      store_panel<kWidth>(y + row * channels, panel, channels, values);
    }
  }
}

// What LayerNorm's backward has besides RMSNorm's; `gate` and `d_gate` may be null.
template <typename T>
struct LayerOnly {
  const float* b;
  const T* gate;
  T* y;
  T* d_gate;
};

// Of a panel of a row that begins at `begin`: writes y and d_gate where asked, and makes of d, the gradient of y, that
// of what the gate multiplies.
template <int kWidth, typename T>
__device__ __forceinline__ void pass_gate(const LayerOnly<T>& layer, std::int64_t begin, int panel,
                                          int channels, bool writes,
                                          const float (&weights)[kPerThread],
                                          const float (&normalized)[kPerThread],
                                          float (&d)[kPerThread]) {
  float y[kPerThread], gates[kPerThread];
  load_panel<kWidth>(layer.b, panel, channels, y);
  for (int i = 0; i < kPerThread; ++i) y[i] += weights[i] * normalized[i];
  if (layer.gate != nullptr) {
    load_panel<kWidth>(layer.gate + begin, panel, channels, gates);
    for (int i = 0; i < kPerThread; ++i) {
      const Jet<float> gelu = GeluTanh<DeviceMath>::at(gates[i]);
      gates[i] = d[i] * y[i] * gelu.slope;
      y[i] *= gelu.value;
      d[i] *= gelu.value;
    }
    if (writes) store_panel<kWidth>(layer.d_gate + begin, panel, channels, gates);
  }
  if (writes) store_panel<kWidth>(layer.y + begin, panel, channels, y);
}

// partial [gridDim.x, C], or [gridDim.x, 2 C] with the bias after the weight. d_x may be d_y or d_beside: a row's sums
// are complete at the barrier of block_sum, and after it a thread touches its own channels only.
template <bool kIsLayer, int kWidth, typename T>
__global__ void __launch_bounds__(kMaxThreads, 1)
    backward_kernel(const T* x, const float* w, const float* mean_in, const float* rstd_in,
                    const T* d_y, const T* d_beside, LayerOnly<T> layer, T* d_x, float* partial,
                    std::int64_t rows, int channels) {
  __shared__ float buffers[2][2 * kMaxWarps];
  const float inverse = 1.0F / static_cast<float>(channels);
  const int step = panel_channels();
  float* const partial_w =
      partial + static_cast<std::int64_t>(blockIdx.x) * (kIsLayer ? 2 : 1) * channels;
  float* const partial_b = partial_w + channels;
  float normalized[kPerThread] = {}, d[kPerThread] = {}, weights[kPerThread];
  float sum_w[kPerThread] = {}, sum_b[kPerThread] = {};
  load_panel<kWidth>(w, 0, channels, weights);
  int parity = 0;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x, parity ^= 1) {
    const float mean = kIsLayer ? mean_in[row] : 0.0F;
    const float rstd = rstd_in[row];
    const auto load = [&](int panel, bool is_first) {
      load_panel<kWidth>(x + row * channels, panel, channels, normalized);
      load_panel<kWidth>(d_y + row * channels, panel, channels, d);
      if (step < channels) load_panel<kWidth>(w, panel, channels, weights);
      for (int i = 0; i < kPerThread; ++i) normalized[i] = (normalized[i] - mean) * rstd;
      if constexpr (kIsLayer) {
        pass_gate<kWidth>(layer, row * channels, panel, channels, is_first, weights, normalized, d);
      }
    };
    float sums[kIsLayer ? 2 : 1] = {};  // of g times the normalised x, g = w d_y; and of g
    for (int panel = 0; panel < channels; panel += step) {
      load(panel, true);
      for (int i = 0; i < kPerThread; ++i) {
        const float g = weights[i] * d[i];
        sums[0] += g * normalized[i];
        if constexpr (kIsLayer) sums[1] += g;
      }
    }
    block_sum(sums, buffers[parity]);
    const float mean_gxh = sums[0] * inverse;
    const float mean_g = kIsLayer ? sums[kIsLayer ? 1 : 0] * inverse : 0.0F;
    for (int panel = 0; panel < channels; panel += step) {
      if (step < channels) load(panel, false);
      for (int i = 0; i < kPerThread; ++i) {
        sum_w[i] += d[i] * normalized[i];
        sum_b[i] += d[i];
        d[i] = rstd * (weights[i] * d[i] - mean_g - normalized[i] * mean_gxh);
      }
      if (d_beside != nullptr) {
        float beside[kPerThread];
        load_panel<kWidth>(d_beside + row * channels, panel, channels, beside);
        for (int i = 0; i < kPerThread; ++i) d[i] += beside[i];
      }
      store_panel<kWidth>(d_x + row * channels, panel, channels, d);
      if (step >= channels) continue;
      const bool is_first = row == blockIdx.x;
      flush_panel<kWidth>(partial_w, panel, channels, is_first, sum_w);
      if constexpr (kIsLayer) flush_panel<kWidth>(partial_b, panel, channels, is_first, sum_b);
    }
  }
  if (step < channels) return;
  store_panel<kWidth>(partial_w, 0, channels, sum_w);
  if constexpr (kIsLayer) store_panel<kWidth>(partial_b, 0, channels, sum_b);
}

template <typename T>
T* data_or_null(TensorView view) {
  return view.empty() ? nullptr : view.data<T>();
}

// Threads for rows of `channels`, in whole warps.
dim3 block_of(std::int64_t channels) {
  TTT_CHECK(channels < std::int64_t{1} << 30, "rows of {} channels",
            channels);  // an int counts them
  const std::int64_t threads = (channels + kPerThread - 1) / kPerThread;
  const std::int64_t warps = (threads + kWarpLanes - 1) / kWarpLanes;
  return dim3(
      static_cast<unsigned>(std::clamp<std::int64_t>(warps * kWarpLanes, kWarpLanes, kMaxThreads)));
}

// One alignment serves all: rows of chunks of 16 bytes, parameters too.
template <typename T, typename F>
void visit_width(std::int64_t channels, bool is_aligned, F&& f) {
  constexpr int kWidth = 16 / static_cast<int>(sizeof(T));
  visit_chunk<kWidth>(is_aligned && channels % kWidth == 0, std::forward<F>(f));
}

template <bool kIsLayer>
void norm_forward(TensorView x, TensorView w, TensorView b, TensorView gate, TensorView y,
                  TensorView mean, TensorView rstd, double epsilon, Stream& stream) {
  const std::int64_t rows = x.size(0);
  const std::int64_t channels = x.size(1);
  const LaunchShape shape{dim3(static_cast<unsigned>(std::min(rows, kMaxForwardBlocks))),
                          block_of(channels)};
  visit_activation_type(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const bool is_aligned = are_aligned(16, x.raw(), w.raw(), b.raw(), gate.raw(), y.raw());
    visit_width<T>(channels, is_aligned, [&](auto width) {
      launch(forward_kernel<kIsLayer, decltype(width)::value, T>, shape, stream, x.data<T>(),
             w.data<float>(), b.data<float>(), data_or_null<T>(gate), y.data<T>(),
             mean.data<float>(), rstd.data<float>(), static_cast<float>(epsilon), rows, channels);
    });
  });
}

template <bool kIsLayer>
void norm_backward(TensorView x, TensorView w, TensorView b, TensorView gate, TensorView mean,
                   TensorView rstd, TensorView d_y, TensorView d_beside, TensorView y,
                   TensorView d_x, TensorView d_gate, TensorView d_w, TensorView d_b,
                   Stream& stream) {
  const std::int64_t rows = x.size(0);
  const std::int64_t channels = x.size(1);
  if (rows == 0 || channels == 0) return;
  const std::int64_t blocks = std::min((rows + kRowsPerBlock - 1) / kRowsPerBlock, kMaxPartialRows);
  const Tensor partial(Shape{blocks, (kIsLayer ? 2 : 1) * channels}, DType::kF32);
  const LaunchShape shape{dim3(static_cast<unsigned>(blocks)), block_of(channels)};
  visit_activation_type(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const bool is_aligned = are_aligned(16, x.raw(), w.raw(), b.raw(), gate.raw(), d_y.raw(),
                                        d_beside.raw(), y.raw(), d_x.raw(), d_gate.raw());
    const LayerOnly<T> layer{b.data<float>(), data_or_null<T>(gate), data_or_null<T>(y),
                             data_or_null<T>(d_gate)};
    visit_width<T>(channels, is_aligned, [&](auto width) {
      launch(backward_kernel<kIsLayer, decltype(width)::value, T>, shape, stream, x.data<T>(),
             w.data<float>(), mean.data<float>(), rstd.data<float>(), d_y.data<T>(),
             data_or_null<T>(d_beside), layer, d_x.data<T>(), partial.data<float>(), rows,
             channels);
    });
  });
  add_column_sums(partial, d_w, d_b, stream);
}

}  // namespace

void rms_norm_forward(TensorView x, TensorView w, TensorView y, TensorView rstd, double epsilon,
                      Stream& stream) {
  norm_forward<false>(x, w, {}, {}, y, {}, rstd, epsilon, stream);
}

void rms_norm_backward(TensorView x, TensorView w, TensorView rstd, TensorView d_y,
                       TensorView d_beside, TensorView d_x, TensorView d_w, Stream& stream) {
  norm_backward<false>(x, w, {}, {}, {}, rstd, d_y, d_beside, {}, d_x, {}, d_w, {}, stream);
}

void layer_norm_forward(TensorView x, TensorView w, TensorView b, TensorView gate, TensorView y,
                        TensorView mean, TensorView rstd, double epsilon, Stream& stream) {
  norm_forward<true>(x, w, b, gate, y, mean, rstd, epsilon, stream);
}

void layer_norm_backward(TensorView x, TensorView w, TensorView b, TensorView gate, TensorView mean,
                         TensorView rstd, TensorView d_y, TensorView y, TensorView d_x,
                         TensorView d_gate, TensorView d_w, TensorView d_b, Stream& stream) {
  norm_backward<true>(x, w, b, gate, mean, rstd, d_y, {}, y, d_x, d_gate, d_w, d_b, stream);
}

}  // namespace ttt::kernels::cuda
