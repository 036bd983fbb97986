#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "kernels/adamw.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffU;
constexpr int kThreads = 256;

struct alignas(16) Packet {
  float values[4];
};

bool are_aligned(std::initializer_list<const void*> pointers) {
  return std::ranges::all_of(pointers, [](const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % alignof(Packet) == 0;
  });
}

struct Scalars {
  float rate, beta1, rest1, unbias1, beta2, rest2, unbias2, epsilon, decay, grad_scale;
};

Scalars scalars_of(const AdamWStep& step) {
  const auto t = static_cast<double>(step.step);
  return {.rate = static_cast<float>(step.learning_rate),
          .beta1 = static_cast<float>(step.beta1),
          .rest1 = static_cast<float>(1.0 - step.beta1),
          .unbias1 = static_cast<float>(1.0 / (1.0 - std::pow(step.beta1, t))),
          .beta2 = static_cast<float>(step.beta2),
          .rest2 = static_cast<float>(1.0 - step.beta2),
          .unbias2 = static_cast<float>(1.0 / (1.0 - std::pow(step.beta2, t))),
          .epsilon = static_cast<float>(step.epsilon),
          .decay = static_cast<float>(step.weight_decay),
          .grad_scale = static_cast<float>(step.grad_scale)};
}

// The fused products are written out: the compiler may not choose others for packets than for single elements, since
// any split into spans gives the same bits.
__device__ __forceinline__ void update(float& p, float gradient, float& m, float& v,
                                       const Scalars& s) {
  const float g = gradient * s.grad_scale;
  m = fmaf(s.beta1, m, s.rest1 * g);
  v = fmaf(s.beta2, v, s.rest2 * (g * g));
  const float direction = m * s.unbias1 / (sqrtf(v * s.unbias2) + s.epsilon);
  p = fmaf(-s.rate, fmaf(s.decay, p, direction), p);
}

// The first `packets` packets, and single elements from there on.
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m,
                 float* __restrict__ v, Scalars scalars, std::int64_t packets, std::int64_t count) {
  for_each_element(packets, [&](std::int64_t i) {
    Packet p_packet = reinterpret_cast<Packet*>(p)[i];
    Packet m_packet = reinterpret_cast<Packet*>(m)[i];
    Packet v_packet = reinterpret_cast<Packet*>(v)[i];
    const Packet g_packet = reinterpret_cast<const Packet*>(g)[i];
    for (int j = 0; j < 4; ++j) {
      update(p_packet.values[j], g_packet.values[j], m_packet.values[j], v_packet.values[j],
             scalars);
    }
    reinterpret_cast<Packet*>(p)[i] = p_packet;
    reinterpret_cast<Packet*>(m)[i] = m_packet;
    reinterpret_cast<Packet*>(v)[i] = v_packet;
  });
  const std::int64_t first = packets * 4;
  for_each_element(count - first, [&](std::int64_t i) {
    update(p[first + i], g[first + i], m[first + i], v[first + i], scalars);
  });
}

// The block's sum, in thread 0; the order is that of the threads' numbers and nothing else.
__device__ __forceinline__ double block_sum(double mine) {
  __shared__ double warp_sums[kThreads / 32];
  for (int distance = 16; distance > 0; distance /= 2) {
    mine += __shfl_down_sync(kAllLanes, mine, distance);
  }
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = mine;
  __syncthreads();
  double sum = 0;
  for (const double warp : warp_sums) sum += warp;
  return sum;
}

// Block b sums elements [b, b + 1) * kSquaresBlock. `kIsAligned` changes the accesses, not the order.
template <bool kIsAligned>
__global__ void __launch_bounds__(kThreads)
    squares_kernel(const float* __restrict__ x, double* __restrict__ partial, std::int64_t count) {
  const std::int64_t begin = blockIdx.x * kSquaresBlock;
  const std::int64_t end = std::min(count, begin + kSquaresBlock);
  double sum = 0;
#pragma unroll 4
  for (std::int64_t i = begin + threadIdx.x * 4; i < end; i += kThreads * 4) {
    Packet packet{};
    if (kIsAligned && i + 4 <= end) {
      packet = *reinterpret_cast<const Packet*>(x + i);
    } else {
      for (int j = 0; j < 4; ++j) packet.values[j] = i + j < end ? x[i + j] : 0.0F;
    }
    for (const float value : packet.values) {
      sum += static_cast<double>(value) * static_cast<double>(value);
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

}  // namespace

void adamw(TensorView parameters, TensorView gradients, TensorView m, TensorView v,
           const AdamWStep& step, Stream& stream) {
  const std::int64_t count = parameters.numel();
  const bool has_packets = are_aligned({parameters.raw(), gradients.raw(), m.raw(), v.raw()});
  const std::int64_t packets = has_packets ? count / 4 : 0;
  launch(adamw_kernel, elementwise_shape(std::max(packets, count - packets * 4)), stream,
         parameters.data<float>(), gradients.data<float>(), m.data<float>(), v.data<float>(),
         scalars_of(step), packets, count);
}

void block_sums_of_squares(TensorView x, TensorView partial, Stream& stream) {
  const bool is_aligned = are_aligned({x.raw()});
  launch(is_aligned ? squares_kernel<true> : squares_kernel<false>,
         {dim3(static_cast<unsigned>(partial.numel())), dim3(kThreads)}, stream, x.data<float>(),
         partial.data<double>(), x.numel());
}

}  // namespace ttt::kernels::cuda
