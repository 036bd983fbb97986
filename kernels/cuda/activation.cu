#include "kernels/activation.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda {
namespace {

// A function's value and derivative at one point.
struct Jet {
  float value;
  float slope;
};

__device__ __forceinline__ float sigmoid(float x) { return 1.0F / (1.0F + expf(-x)); }

struct Silu {
  __device__ static Jet at(float x) {
    const float s = sigmoid(x);
    return {x * s, s + x * s * (1.0F - s)};
  }
};

// (1 + tanh(u)) / 2 = sigmoid(2u), which keeps its relative accuracy where tanh(u) is near -1.
struct GeluTanh {
  __device__ static Jet at(float x) {
    constexpr float kTwoRoot = 1.5957691216057307F;  // 2 sqrt(2/pi)
    constexpr float kCubic = 0.044715F;
    const float s = sigmoid(kTwoRoot * (x + kCubic * x * x * x));
    return {x * s, s + x * s * (1.0F - s) * (kTwoRoot * (1.0F + 3.0F * kCubic * x * x))};
  }
};

struct GeluErf {
  __device__ static Jet at(float x) {
    const float cumulative = 0.5F * erfcf(x * -0.70710678118654752F);
    const float density = expf(-0.5F * x * x) * 0.39894228040143268F;  // 1/sqrt(2 pi)
    return {x * cumulative, cumulative + x * density};
  }
};

template <typename F>
void visit_activation(Activation kind, F&& f) {
  switch (kind) {
    case Activation::kSilu:
      return f(Silu{});
    case Activation::kGeluTanh:
      return f(GeluTanh{});
    case Activation::kGeluErf:
      return f(GeluErf{});
  }
  TTT_CHECK(false, "unknown activation {}", static_cast<int>(kind));
}

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
    const Jet jet = Function::at(load_float(a[i]));
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
    visit_activation(kind, [&](auto function) {
      launch(forward_kernel<decltype(function), T>, elementwise_shape(x.numel()), stream,
             x.data<T>(), y.data<T>(), x.numel());
    });
  });
}

void activation_backward(Activation kind, TensorView x, TensorView d_y, TensorView d_x,
                         Stream& stream) {
  visit_activation_type(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    visit_activation(kind, [&](auto function) {
      launch(backward_kernel<decltype(function), T>, elementwise_shape(x.numel()), stream,
             x.data<T>(), d_y.data<T>(), d_x.data<T>(), x.numel());
    });
  });
}

void gated_forward(Activation kind, TensorView a, TensorView b, TensorView h, Stream& stream) {
  visit_activation_type(a.dtype(), [&](auto zero) {
    using T = decltype(zero);
    visit_activation(kind, [&](auto function) {
      launch(gated_forward_kernel<decltype(function), T>, elementwise_shape(a.numel()), stream,
             a.data<T>(), b.data<T>(), h.data<T>(), a.numel());
    });
  });
}

void gated_backward(Activation kind, TensorView a, TensorView b, TensorView d_h, TensorView d_a,
                    TensorView d_b, Stream& stream) {
  visit_activation_type(a.dtype(), [&](auto zero) {
    using T = decltype(zero);
    visit_activation(kind, [&](auto function) {
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
