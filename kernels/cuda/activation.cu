#include "kernels/cuda/activation_math.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda {
namespace {

// A block takes a row at a time, a thread kCount neighbours of it.
template <int kCount, typename T>
__global__ void swiglu_forward_kernel(const T* gate_up, T* h, std::int64_t rows,
                                      std::int64_t hidden) {
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    for (std::int64_t i = threadIdx.x * kCount; i < hidden; i += blockDim.x * kCount) {
      const T* const at = gate_up + row * 2 * hidden + i;
      float gate[kCount], up[kCount];
      load_chunk<kCount>(at, gate);
      load_chunk<kCount>(at + hidden, up);
#pragma unroll
      for (int k = 0; k < kCount; ++k) up[k] *= Silu<DeviceMath>::at(gate[k]).value;
      store_chunk<kCount>(h + row * hidden + i, up);
    }
  }
}

template <int kCount, typename T>
__global__ void swiglu_backward_kernel(const T* gate_up, const T* d_h, T* d_gate_up, T* h,
                                       std::int64_t rows, std::int64_t hidden) {
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    for (std::int64_t i = threadIdx.x * kCount; i < hidden; i += blockDim.x * kCount) {
      const std::int64_t at = row * 2 * hidden + i;
      float gate[kCount], up[kCount], d[kCount];
      load_chunk<kCount>(gate_up + at, gate);
      load_chunk<kCount>(gate_up + at + hidden, up);
      load_chunk<kCount>(d_h + row * hidden + i, d);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const Jet<float> silu = Silu<DeviceMath>::at(gate[k]);
        gate[k] = d[k] * up[k] * silu.slope;
        up[k] *= silu.value;
        d[k] *= silu.value;
      }
      store_chunk<kCount>(h + row * hidden + i, up);
      store_chunk<kCount>(d_gate_up + at, gate);
      store_chunk<kCount>(d_gate_up + at + hidden, d);
    }
  }
}

LaunchShape rows_shape(std::int64_t rows) {
  constexpr std::int64_t kMaxBlocks = 4096;  // several times what any device runs at once
  return {dim3(static_cast<unsigned>(std::min(rows, kMaxBlocks))), dim3(256)};
}

// f(std::integral_constant<int, elements a thread moves at once>)
template <typename T, typename F, typename... Pointers>
void visit_row_chunk(std::int64_t width, F&& f, Pointers... pointers) {
  constexpr int kCount = 16 / static_cast<int>(sizeof(T));
  visit_chunk<kCount>(width % kCount == 0 && are_aligned(16, pointers...), std::forward<F>(f));
}

template <typename T>
__global__ void add_kernel(const T* x, T* y, std::int64_t count) {
  for_each_element(
      count, [&](std::int64_t i) { store_float(&y[i], load_float(y[i]) + load_float(x[i])); });
}

}  // namespace

void swiglu_forward(TensorView gate_up, TensorView h, Stream& stream) {
  const std::int64_t rows = h.size(0);
  const std::int64_t hidden = h.size(1);
  visit_activation_type(h.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const auto start = [&](auto count) {
      launch(swiglu_forward_kernel<decltype(count)::value, T>, rows_shape(rows), stream,
             gate_up.data<T>(), h.data<T>(), rows, hidden);
    };
    visit_row_chunk<T>(hidden, start, gate_up.raw(), h.raw());
  });
}

void swiglu_backward(TensorView gate_up, TensorView d_h, TensorView d_gate_up, TensorView h,
                     Stream& stream) {
  const std::int64_t rows = h.size(0);
  const std::int64_t hidden = h.size(1);
  visit_activation_type(h.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const auto start = [&](auto count) {
      launch(swiglu_backward_kernel<decltype(count)::value, T>, rows_shape(rows), stream,
             gate_up.data<T>(), d_h.data<T>(), d_gate_up.data<T>(), h.data<T>(), rows, hidden);
    };
    visit_row_chunk<T>(hidden, start, gate_up.raw(), d_h.raw(), d_gate_up.raw(), h.raw());
  });
}

void add(TensorView x, TensorView y, Stream& stream) {
  visit_activation_type(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    launch(add_kernel<T>, elementwise_shape(x.numel()), stream, x.data<T>(), y.data<T>(),
           x.numel());
  });
}

}  // namespace ttt::kernels::cuda
