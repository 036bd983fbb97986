#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/rotation_table.h"
#include "kernels/cuda/simt.h"
#include "kernels/rope.h"

namespace ttt::kernels::cuda {
namespace {

constexpr std::int64_t kMaxBlocks = 4096;
constexpr int kMaxThreads = 256;

// table [E, F/2] of (cosine, sign * sine). Entry e is the position of token e; tokens E apart have equal positions.
__global__ void table_kernel(float* table, std::int64_t entries, std::int64_t half, double base,
                             std::int64_t period, std::int64_t first_position, double sign) {
  for_each_element(entries * half, [&](std::int64_t i) {
    const std::int64_t absolute = first_position + i / half;
    const std::int64_t position = period == 0 ? absolute : absolute % period;
    const double frequency = pow(base, -static_cast<double>(i % half) / static_cast<double>(half));
    const double angle = static_cast<double>(position) * frequency;
    table[2 * i] = static_cast<float>(cos(angle));
    table[2 * i + 1] = static_cast<float>(sign * sin(angle));
  });
}

// Pairs i .. i + kPairs - 1 of a head are read and written at once. y may be x.
template <RopePairing kPairing, int kPairs, typename T>
struct Pairs {
  static constexpr bool kIsInterleaved = kPairing == RopePairing::kInterleaved;

  __device__ static void load(const T* head, unsigned i, unsigned half, float (&a)[kPairs],
                              float (&b)[kPairs]) {
    if constexpr (kIsInterleaved && kPairs > 1) {
      float both[2 * kPairs];
      load_chunk<2 * kPairs>(head + 2 * i, both);
#pragma unroll
      for (int k = 0; k < kPairs; ++k) {
        a[k] = both[2 * k];
        b[k] = both[2 * k + 1];
      }
    } else {
      load_chunk<kPairs>(head + (kIsInterleaved ? 2 * i : i), a);
      load_chunk<kPairs>(head + (kIsInterleaved ? 2 * i + 1 : i + half), b);
    }
  }

  __device__ static void store(T* head, unsigned i, unsigned half, const float (&a)[kPairs],
                               const float (&b)[kPairs]) {
    if constexpr (kIsInterleaved && kPairs > 1) {
      float both[2 * kPairs];
#pragma unroll
      for (int k = 0; k < kPairs; ++k) {
        both[2 * k] = a[k];
        both[2 * k + 1] = b[k];
      }
      store_chunk<2 * kPairs>(head + 2 * i, both);
    } else {
      store_chunk<kPairs>(head + (kIsInterleaved ? 2 * i : i), a);
      store_chunk<kPairs>(head + (kIsInterleaved ? 2 * i + 1 : i + half), b);
    }
  }
};

// A block takes the heads of one token at a time.
template <RopePairing kPairing, int kPairs, typename T>
__global__ void __launch_bounds__(kMaxThreads)
    rotate_kernel(const T* x, T* y, const float* __restrict__ table, std::int64_t rows,
                  std::int64_t tokens, std::int64_t entries, unsigned heads, unsigned half) {
  using Access = Pairs<kPairing, kPairs, T>;
  const unsigned items_per_head = half / kPairs;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const float* const rotations = table + row % tokens % entries * (2 * half);
    for (unsigned item = threadIdx.x; item < heads * items_per_head; item += blockDim.x) {
      const unsigned i = item % items_per_head * kPairs;
      const std::int64_t head = (row * heads + item / items_per_head) * (2 * half);
      float a[kPairs], b[kPairs], rotation[2 * kPairs];
      Access::load(x + head, i, half, a, b);
      load_chunk<2 * kPairs>(rotations + 2 * i, rotation);
#pragma unroll
      for (int k = 0; k < kPairs; ++k) {
        const float cosine = rotation[2 * k];
        const float sine = rotation[2 * k + 1];
        const float rotated = a[k] * cosine - b[k] * sine;
        b[k] = a[k] * sine + b[k] * cosine;
        a[k] = rotated;
      }
      Access::store(y + head, i, half, a, b);
    }
  }
}

template <RopePairing kPairing>
void rotate_pairs(TensorView x, TensorView y, TensorView table, Stream& stream) {
  const std::int64_t rows = x.size(0) * x.size(1);
  const std::int64_t half = x.size(3) / 2;
  visit_activation_type(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = 16 / static_cast<int>(sizeof(T));
    constexpr int kPairs = kPairing == RopePairing::kInterleaved ? kWidth / 2 : kWidth;
    visit_chunk<kPairs>(half % kPairs == 0 && are_aligned(16, x.raw(), y.raw()), [&](auto pairs) {
      constexpr int kAtOnce = decltype(pairs)::value;
      const std::int64_t items = x.size(2) * half / kAtOnce;
      const std::int64_t warps = (items + kWarpLanes - 1) / kWarpLanes;
      const auto threads = std::min<std::int64_t>(warps * kWarpLanes, kMaxThreads);
      launch(rotate_kernel<kPairing, kAtOnce, T>,
             {dim3(static_cast<unsigned>(std::min(rows, kMaxBlocks))),
              dim3(static_cast<unsigned>(threads))},
             stream, x.data<T>(), y.data<T>(), table.data<float>(), rows, x.size(1), table.size(0),
             x.size(2), half);
    });
  });
}

void rotate(TensorView x, TensorView y, const RopeOptions& options, double sign, Stream& stream) {
  if (x.numel() == 0) return;
  const Tensor table = rotation_table(x.size(1), x.size(3), options, sign, stream);
  if (options.pairing == RopePairing::kInterleaved) {
    rotate_pairs<RopePairing::kInterleaved>(x, y, table, stream);
  } else {
    rotate_pairs<RopePairing::kHalves>(x, y, table, stream);
  }
}

}  // namespace

Tensor rotation_table(std::int64_t tokens, std::int64_t head_dim, const RopeOptions& options,
                      double sign, Stream& stream) {
  const std::int64_t entries = options.period == 0 ? tokens : std::min(options.period, tokens);
  Tensor table(Shape{entries, head_dim}, DType::kF32);
  launch(table_kernel, elementwise_shape(entries * head_dim / 2), stream, table.data<float>(),
         entries, head_dim / 2, options.base, options.period, options.first_position, sign);
  return table;
}

void rope_forward(TensorView x, TensorView y, const RopeOptions& options, Stream& stream) {
  rotate(x, y, options, 1.0, stream);
}

void rope_backward(TensorView d_y, TensorView d_x, const RopeOptions& options, Stream& stream) {
  rotate(d_y, d_x, options, -1.0, stream);
}

}  // namespace ttt::kernels::cuda
