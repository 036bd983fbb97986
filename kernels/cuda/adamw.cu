#include <algorithm>
#include <cfloat>
#include <cmath>
#include <initializer_list>

#include "kernels/adamw.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/reduce.h"

namespace ttt::kernels::cuda {
namespace {

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
  float rate, beta1, rest1, beta2, rest2, epsilon, decay;
};

Scalars scalars_of(const AdamWStep& step) {
  return {.rate = static_cast<float>(step.learning_rate),
          .beta1 = static_cast<float>(step.beta1),
          .rest1 = static_cast<float>(1.0 - step.beta1),
          .beta2 = static_cast<float>(step.beta2),
          .rest2 = static_cast<float>(1.0 - step.beta2),
          .epsilon = static_cast<float>(step.epsilon),
          .decay = static_cast<float>(step.weight_decay)};
}

// One block.
__global__ void __launch_bounds__(kThreads)
    decide_kernel(const double* __restrict__ squares, const double* __restrict__ losses,
                  std::int64_t num_losses, double* __restrict__ decision, UpdateLimits limits,
                  double beta1, double beta2, double clip_norm) {
  double loss = 0;
  for (std::int64_t i = threadIdx.x; i < num_losses; i += kThreads) loss += losses[i];
  loss = block_sum(loss);
  if (threadIdx.x != 0) return;
  const double norm = ::sqrt(*squares);
  const bool is_finite = norm <= DBL_MAX && loss <= DBL_MAX && loss >= -DBL_MAX;  // NaN is neither
  const bool is_made = is_finite && norm <= limits.norm && loss <= limits.loss;
  decision[kIsMade] = is_made ? 1 : 0;
  if (!is_made) return;
  const double t = decision[kNumUpdates] + 1;
  decision[kNumUpdates] = t;
  decision[kClipScale] = clip_norm > 0 && norm >= clip_norm ? clip_norm / norm : 1.0;
  decision[kUnbias1] = 1.0 / (1.0 - ::pow(beta1, t));
  decision[kUnbias2] = 1.0 / (1.0 - ::pow(beta2, t));
}

// The decision as the elements need it.
struct Shared {
  float scale, unbias1, unbias2;
};

// The fused products are written out: the compiler may not choose others for packets than for single elements, since
// any split into spans gives the same bits.
__device__ __forceinline__ void update(float& p, float gradient, float& m, float& v,
                                       const Shared& shared, const Scalars& s) {
  const float g = gradient * shared.scale;
  m = fmaf(s.beta1, m, s.rest1 * g);
  v = fmaf(s.beta2, v, s.rest2 * (g * g));
  const float direction = m * shared.unbias1 / (sqrtf(v * shared.unbias2) + s.epsilon);
  p = fmaf(-s.rate, fmaf(s.decay, p, direction), p);
}

// The first `packets` packets, and single elements from there on.
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m,
                 float* __restrict__ v, const double* __restrict__ decision,
                 BFloat16* __restrict__ rounded, Scalars scalars, std::int64_t packets,
                 std::int64_t count) {
  if (decision[kIsMade] == 0) return;
  const Shared shared{static_cast<float>(decision[kClipScale]),
                      static_cast<float>(decision[kUnbias1]),
                      static_cast<float>(decision[kUnbias2])};
  for_each_element(packets, [&](std::int64_t i) {
    Packet p_packet = reinterpret_cast<Packet*>(p)[i];
    Packet m_packet = reinterpret_cast<Packet*>(m)[i];
    Packet v_packet = reinterpret_cast<Packet*>(v)[i];
    const Packet g_packet = reinterpret_cast<const Packet*>(g)[i];
    for (int j = 0; j < 4; ++j) {
      update(p_packet.values[j], g_packet.values[j], m_packet.values[j], v_packet.values[j], shared,
             scalars);
    }
    reinterpret_cast<Packet*>(p)[i] = p_packet;
    reinterpret_cast<Packet*>(m)[i] = m_packet;
    reinterpret_cast<Packet*>(v)[i] = v_packet;
    if (rounded != nullptr) store_chunk<4>(rounded + 4 * i, p_packet.values);
  });
  const std::int64_t first = packets * 4;
  for_each_element(count - first, [&](std::int64_t i) {
    update(p[first + i], g[first + i], m[first + i], v[first + i], shared, scalars);
    if (rounded != nullptr) store_float(&rounded[first + i], p[first + i]);
  });
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

// One block: partial [count], added up.
__global__ void __launch_bounds__(kThreads)
    total_kernel(const double* __restrict__ partial, double* __restrict__ total,
                 std::int64_t count) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *total = sum;
}

}  // namespace

void decide_update(TensorView squares, TensorView losses, TensorView decision,
                   const UpdateLimits& limits, const AdamWStep& step, Stream& stream) {
  launch(decide_kernel, {dim3(1), dim3(kThreads)}, stream, squares.data<double>(),
         losses.empty() ? nullptr : losses.data<double>(), losses.empty() ? 0 : losses.numel(),
         decision.data<double>(), limits, step.beta1, step.beta2, step.clip_norm);
}

void adamw(TensorView parameters, TensorView gradients, TensorView m, TensorView v,
           TensorView decision, TensorView rounded, const AdamWStep& step, Stream& stream) {
  const std::int64_t count = parameters.numel();
  BFloat16* const to = rounded.empty() ? nullptr : rounded.data<BFloat16>();
  const bool has_packets = are_aligned({parameters.raw(), gradients.raw(), m.raw(), v.raw()}) &&
                           reinterpret_cast<std::uintptr_t>(to) % (4 * sizeof(BFloat16)) == 0;
  const std::int64_t packets = has_packets ? count / 4 : 0;
  launch(adamw_kernel, elementwise_shape(std::max(packets, count - packets * 4)), stream,
         parameters.data<float>(), gradients.data<float>(), m.data<float>(), v.data<float>(),
         decision.data<double>(), to, scalars_of(step), packets, count);
}

void block_sums_of_squares(TensorView x, TensorView partial, Stream& stream) {
  if (partial.numel() == 0) return;
  const bool is_aligned = are_aligned({x.raw()});
  launch(is_aligned ? squares_kernel<true> : squares_kernel<false>,
         {dim3(static_cast<unsigned>(partial.numel())), dim3(kThreads)}, stream, x.data<float>(),
         partial.data<double>(), x.numel());
}

void add_up(TensorView partial, TensorView sum, Stream& stream) {
  launch(total_kernel, {dim3(1), dim3(kThreads)}, stream, partial.data<double>(),
         sum.data<double>(), partial.numel());
}

}  // namespace ttt::kernels::cuda
