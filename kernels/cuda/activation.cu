#include "kernels/cuda/activation_math.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda {
namespace {

template <typename Function, typename T>
__global__ void forward_kernel(const T* x, T* y, std::int64_t count) {
  for_each_element(
      count, [&](std::int64_t i) { store_float(&y[i], Function::at(load_float(x[i])).value); });
}

template <typename Function, typename T>
__global__ void backward_kernel(const T* x, const T* d_y, T* d_x, std::int64_t count) {
  for_each_element(count, [&](std::int64_t i) {
    store_float(&d_x[i], load_float(d_y[i]) * Function::at(load_float(x[i])).slope);
  });
}

template <typename Function, typename T>
__global__ void gated_forward_kernel(const T* a, const T* b, T* h, std::int64_t count) {
  for_each_element(count, [&](std::int64_t i) {
    store_float(&h[i], Function::at(load_float(a[i])).value * load_float(b[i]));
  });
}

template <typename Function, typename T>
__global__ void gated_backward_kernel(const T* a, const T* b, const T* d_h, T* d_a, T* d_b,
                                      std::int64_t count) {
  for_each_element(count, [&](std::int64_t i) {
    const Jet<float> jet = Function::at(load_float(a[i]));
    const float d = load_float(d_h[i]);
    const float through_a = d * load_float(b[i]) * jet.slope;
    store_float(&d_b[i], d * jet.value);
    store_float(&d_a[i], through_a);
  });
}

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

void activation_forward(Activation kind, TensorView x, TensorView y, Stream& stream) {
  visit_activation_type(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    visit_activation<DeviceMath>(kind, [&](auto function) {
      launch(forward_kernel<decltype(function), T>, elementwise_shape(x.numel()), stream,
             x.data<T>(), y.data<T>(), x.numel());
    });
  });
}

void activation_backward(Activation kind, TensorView x, TensorView d_y, TensorView d_x,
                         Stream& stream) {
  visit_activation_type(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    visit_activation<DeviceMath>(kind, [&](auto function) {
      launch(backward_kernel<decltype(function), T>, elementwise_shape(x.numel()), stream,
             x.data<T>(), d_y.data<T>(), d_x.data<T>(), x.numel());
    });
  });
}

void gated_forward(Activation kind, TensorView a, TensorView b, TensorView h, Stream& stream) {
  visit_activation_type(a.dtype(), [&](auto zero) {
    using T = decltype(zero);
    visit_activation<DeviceMath>(kind, [&](auto function) {
      launch(gated_forward_kernel<decltype(function), T>, elementwise_shape(a.numel()), stream,
             a.data<T>(), b.data<T>(), h.data<T>(), a.numel());
    });
  });
}

void gated_backward(Activation kind, TensorView a, TensorView b, TensorView d_h, TensorView d_a,
                    TensorView d_b, Stream& stream) {
  visit_activation_type(a.dtype(), [&](auto zero) {
    using T = decltype(zero);
    visit_activation<DeviceMath>(kind, [&](auto function) {
      launch(gated_backward_kernel<decltype(function), T>, elementwise_shape(a.numel()), stream,
             a.data<T>(), b.data<T>(), d_h.data<T>(), d_a.data<T>(), d_b.data<T>(), a.numel());
    });
  });
}

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
