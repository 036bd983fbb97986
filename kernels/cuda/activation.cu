#include "kernels/activation_jets.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda {
namespace {

struct DeviceMath {
  __device__ __forceinline__ static float sigmoid(float x) { return 1.0F / (1.0F + expf(-x)); }
  __device__ __forceinline__ static float exponential(float x) { return expf(x); }
  __device__ __forceinline__ static float erfc(float x) { return erfcf(x); }
};

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

void add(TensorView x, TensorView y, Stream& stream) {
  visit_activation_type(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    launch(add_kernel<T>, elementwise_shape(x.numel()), stream, x.data<T>(), y.data<T>(),
           x.numel());
  });
}

}  // namespace ttt::kernels::cuda
