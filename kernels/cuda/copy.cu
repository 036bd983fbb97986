#include "kernels/copy.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda {
namespace {

// Values pass through double, which holds every F32 and BF16.
__device__ __forceinline__ double load_double(double value) { return value; }
__device__ __forceinline__ double load_double(float value) { return value; }
__device__ __forceinline__ double load_double(BFloat16 value) { return load_float(value); }
__device__ __forceinline__ void store_double(double* to, double value) { *to = value; }
__device__ __forceinline__ void store_double(float* to, double value) {
  *to = static_cast<float>(value);
}
__device__ __forceinline__ void store_double(BFloat16* to, double value) {
  store_float(to, static_cast<float>(value));
}

template <typename From, typename To>
__global__ void __launch_bounds__(256)
    convert_kernel(const From* from, To* to, std::int64_t count) {
  for_each_element(count, [&](std::int64_t i) { store_double(&to[i], load_double(from[i])); });
}

template <typename T>
__global__ void __launch_bounds__(256) copy_kernel(const T* from, T* to, std::int64_t count) {
  for_each_element(count, [&](std::int64_t i) { to[i] = from[i]; });
}

template <typename T>
__global__ void __launch_bounds__(256) fill_kernel(T* y, double value, std::int64_t count) {
  for_each_element(count, [&](std::int64_t i) { store_double(&y[i], value); });
}

// T has the size of an element.
template <typename T>
__global__ void __launch_bounds__(256)
    copy_columns_kernel(const T* from, std::int64_t from_width, T* to, std::int64_t to_width,
                        std::int64_t rows, std::int64_t columns) {
  for_each_element(rows * columns, [&](std::int64_t i) {
    to[i / columns * to_width + i % columns] = from[i / columns * from_width + i % columns];
  });
}

template <typename F>
void visit_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF64:
      return f(double{});
    case DType::kF32:
      return f(float{});
    case DType::kBF16:
      return f(BFloat16{});
    default:
      TTT_CHECK(false, "a floating-point tensor is needed, not {}", name_of(dtype));
  }
}

// Equal types: bytes, sixteen at a time where the addresses allow.
void copy_bytes(const void* from, void* to, std::int64_t bytes, Stream& stream) {
  const auto alignment =
      reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to);
  if ((alignment | static_cast<std::uintptr_t>(bytes)) % sizeof(uint4) == 0) {
    const auto count = bytes / static_cast<std::int64_t>(sizeof(uint4));
    launch(copy_kernel<uint4>, elementwise_shape(count), stream, static_cast<const uint4*>(from),
           static_cast<uint4*>(to), count);
  } else {
    launch(copy_kernel<std::uint8_t>, elementwise_shape(bytes), stream,
           static_cast<const std::uint8_t*>(from), static_cast<std::uint8_t*>(to), bytes);
  }
}

}  // namespace

void copy(TensorView from, TensorView to, Stream& stream) {
  if (from.dtype() == to.dtype()) {
    return copy_bytes(from.raw(), to.raw(), from.num_bytes(), stream);
  }
  visit_float(from.dtype(), [&](auto source) {
    visit_float(to.dtype(), [&](auto target) {
      using From = decltype(source);
      using To = decltype(target);
      launch(convert_kernel<From, To>, elementwise_shape(from.numel()), stream, from.data<From>(),
             to.data<To>(), from.numel());
    });
  });
}

void copy_columns(TensorView from, std::int64_t from_begin, TensorView to, std::int64_t to_begin,
                  std::int64_t columns, Stream& stream) {
  visit_float(from.dtype(), [&](auto element) {
    using T = decltype(element);
    launch(copy_columns_kernel<T>, elementwise_shape(from.size(0) * columns), stream,
           static_cast<const T*>(from.data<T>() + from_begin), from.size(1),
           to.data<T>() + to_begin, to.size(1), from.size(0), columns);
  });
}

void fill(TensorView y, double value, Stream& stream) {
  visit_float(y.dtype(), [&](auto element) {
    using T = decltype(element);
    launch(fill_kernel<T>, elementwise_shape(y.numel()), stream, y.data<T>(), value, y.numel());
  });
}

}  // namespace ttt::kernels::cuda
