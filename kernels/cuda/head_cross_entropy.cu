#include <algorithm>
#include <cfloat>
#include <limits>

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/simt.h"
#include "kernels/head_cross_entropy.h"

namespace ttt::kernels::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffU;
constexpr int kMaxThreads = 512;

// Elements that move together, in one access when there are 16 bytes of them.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Packet {
  T values[kWidth];
};

// Calls f(packet) for this thread's share of a row that may begin and end anywhere: packets of 16 bytes between the
// boundaries of 16 bytes, packets of one element outside them.
template <typename T, typename F>
__device__ __forceinline__ void for_each_packet(T* row, std::int64_t count, F&& f) {
  constexpr int kWidth = 16 / sizeof(T);
  const auto past_boundary = static_cast<int>(reinterpret_cast<std::uintptr_t>(row) % 16);
  const std::int64_t to_boundary = (16 - past_boundary) % 16 / static_cast<int>(sizeof(T));
  const std::int64_t head = std::min(count, to_boundary);
  const std::int64_t packets = (count - head) / kWidth;
  auto* const inner = reinterpret_cast<Packet<T, kWidth>*>(row + head);
  for (std::int64_t i = threadIdx.x; i < packets; i += blockDim.x) f(inner[i]);
  const std::int64_t tail = head + packets * kWidth;
  const std::int64_t i = threadIdx.x;  // head and tail are fewer elements than a warp has lanes
  if (i < head + count - tail) {
    f(*reinterpret_cast<Packet<T, 1>*>(row + (i < head ? i : tail + i - head)));
  }
}

// Of some of a row's logits. `largest` is finite when there are none, so that no difference of infinities appears.
struct RowSum {
  float largest = -FLT_MAX;
  float sum = 0.0F;  // of exp(z - largest)
};

__device__ __forceinline__ RowSum joined(const RowSum& a, const RowSum& b) {
  const float largest = fmaxf(a.largest, b.largest);
  return {largest, a.sum * expf(a.largest - largest) + b.sum * expf(b.largest - largest)};
}

/// That of the whole warp, in lane 0.
__device__ __forceinline__ RowSum warp_sum(RowSum mine) {
  for (int distance = 16; distance > 0; distance /= 2) {
    const RowSum other{__shfl_down_sync(kAllLanes, mine.largest, distance),
                       __shfl_down_sync(kAllLanes, mine.sum, distance)};
    mine = joined(mine, other);
  }
  return mine;
}

struct Loss {
  double nll;
  float gradient_scale;  // d_z = gradient_scale exp(z - largest), and weight less at the target
};

// A target outside the vocabulary is an error that nobody on the device can report: NaN reaches the loss and, through
// every gradient, the norm that the optimizer checks.
__device__ __forceinline__ Loss loss_of(const RowSum& row, float target_logit, bool has_target,
                                        double weight) {
  if (!has_target && weight != 0) {
    return {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<float>::quiet_NaN()};
  }
  const double logsumexp = static_cast<double>(row.largest) + ::log(static_cast<double>(row.sum));
  return {has_target ? logsumexp - static_cast<double>(target_logit) : 0.0,
          static_cast<float>(weight / static_cast<double>(row.sum))};
}

// A block a row of logits [N, V]: nll, and z becomes d_z when `kKeeps`.
template <typename T, bool kKeeps>
__global__ void __launch_bounds__(kMaxThreads)
    row_kernel(T* logits, const std::int64_t* targets, const double* token_weight, double* nll,
               std::int64_t vocab) {
  __shared__ float warp_largest[kMaxThreads / 32];
  __shared__ float warp_sums[kMaxThreads / 32];
  __shared__ float row_largest;
  __shared__ float gradient_scale;
  const std::int64_t n = blockIdx.x;
  T* const row = logits + n * vocab;
  RowSum mine;
  for_each_packet(row, vocab, [&](const auto& packet) {
    const auto z = packet;
    float largest = mine.largest;
    for (const T& value : z.values) largest = fmaxf(largest, load_float(value));
    float sum = mine.sum * expf(mine.largest - largest);
    for (const T& value : z.values) sum += expf(load_float(value) - largest);
    mine = {largest, sum};
  });
  const unsigned lane = threadIdx.x % 32;
  const unsigned warp = threadIdx.x / 32;
  mine = warp_sum(mine);
  if (lane == 0) {
    warp_largest[warp] = mine.largest;
    warp_sums[warp] = mine.sum;
  }
  __syncthreads();

  const std::int64_t target = targets[n];
  const double weight = token_weight[n];
  const bool has_target = target >= 0 && target < vocab;
  float target_logit = 0.0F;  // of thread 0, which needs it after the row is overwritten
  if (warp == 0) {
    RowSum all;
    if (lane < blockDim.x / 32) all = {warp_largest[lane], warp_sums[lane]};
    all = warp_sum(all);
    if (lane == 0) {
      if (has_target) target_logit = load_float(row[target]);
      const Loss loss = loss_of(all, target_logit, has_target, weight);
      nll[n] = loss.nll;
      row_largest = all.largest;
      gradient_scale = loss.gradient_scale;
    }
  }
  if constexpr (kKeeps) {
    __syncthreads();
    const float largest = row_largest;
    const float scale = gradient_scale;
    const bool is_zero = weight == 0;  // not 0 * softmax, which is NaN for infinite logits
    for_each_packet(row, vocab, [&](auto& packet) {
      auto z = packet;
      for (T& value : z.values) {
        store_float(&value, is_zero ? 0.0F : scale * expf(load_float(value) - largest));
      }
      packet = z;
    });
    __syncthreads();  // the target's element is written last
    if (threadIdx.x == 0 && has_target && !is_zero) {
      store_float(&row[target], scale * expf(target_logit - largest) - static_cast<float>(weight));
    }
  }
}

__global__ void round_kernel(const float* __restrict__ from, BFloat16* __restrict__ to,
                             std::int64_t count) {
  for_each_element(count, [&](std::int64_t i) { store_float(&to[i], from[i]); });
}

// Some eight packets a thread: enough loads under way, and warps enough for a row.
template <typename T>
LaunchShape row_shape(std::int64_t rows, std::int64_t vocab) {
  constexpr std::int64_t kElementsPerWarp = 32 * 8 * (16 / sizeof(T));
  const std::int64_t warps = (vocab + kElementsPerWarp - 1) / kElementsPerWarp;
  const std::int64_t threads = std::min<std::int64_t>(warps * 32, kMaxThreads);
  return {dim3(static_cast<unsigned>(rows)), dim3(static_cast<unsigned>(threads))};
}

}  // namespace

void head_cross_entropy(TensorView x, TensorView w, TensorView targets, TensorView token_weight,
                        TensorView nll, TensorView d_x, TensorView d_w, Precision precision,
                        Stream& stream) {
  const std::int64_t tokens = x.size(0);
  const std::int64_t vocab = w.size(0);
  const std::int64_t chunk_rows = head_chunk_rows(Device::kCuda, tokens, vocab, size_of(x.dtype()));
  const bool has_gradient = !d_x.empty() || !d_w.empty();
  Tensor w_rounded;  // once, not in each product
  if (x.dtype() == DType::kBF16 && precision == Precision::kBF16 && w.dtype() != DType::kBF16) {
    w_rounded = Tensor(w.shape(), DType::kBF16);
    launch(round_kernel, elementwise_shape(w.numel()), stream, w.data<float>(),
           w_rounded.data<BFloat16>(), w.numel());
    w = w_rounded;
  }
  const Tensor logits({chunk_rows, vocab}, x.dtype());
  for (std::int64_t begin = 0; begin < tokens; begin += chunk_rows) {
    const std::int64_t end = std::min(tokens, begin + chunk_rows);
    const TensorView x_rows = x.slice(begin, end);
    const TensorView z = logits.view().slice(0, end - begin);
    cuda::linear_forward(x_rows, w, {}, z, precision, stream);
    visit_activation_type(x.dtype(), [&](auto zero) {
      using T = decltype(zero);
      launch(has_gradient ? row_kernel<T, true> : row_kernel<T, false>,
             row_shape<T>(end - begin, vocab), stream, z.data<T>(),
             targets.data<std::int64_t>() + begin, token_weight.data<double>() + begin,
             nll.data<double>() + begin, vocab);
    });
    if (!d_x.empty()) {
      cuda::linear_backward_input(z, w, d_x.slice(begin, end), Accumulate::kNo, precision, stream);
    }
    if (!d_w.empty()) cuda::linear_backward_weight(z, x_rows, d_w, precision, stream);
  }
}

}  // namespace ttt::kernels::cuda
