#include "core/base/tensor.h"

#include <algorithm>
#include <cstring>

#include "core/base/memory.h"
#include "core/base/visit_float.h"

namespace ttt {
namespace {

// bfloat16 converts through float only.
template <typename To, typename From>
To convert(From value) {
  if constexpr (std::is_same_v<From, BFloat16>) {
    return convert<To>(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, BFloat16>) {
    return BFloat16(static_cast<float>(value));
  } else {
    return static_cast<To>(value);
  }
}

}  // namespace

TensorView TensorView::reshape(const Shape& shape) const {
  TTT_CHECK(shape.numel() == numel(), "cannot reshape {} to {}", shape_.str(), shape.str());
  return {data_, shape, dtype_};
}

TensorView TensorView::slice(std::int64_t begin, std::int64_t end) const {
  TTT_CHECK(shape_.rank() > 0 && begin >= 0 && begin <= end && end <= shape_[0],
            "rows [{}, {}) of {}", begin, end, shape_.str());
  std::array<std::int64_t, Shape::kMaxRank> dims{};
  std::ranges::copy(shape_.dims(), dims.begin());
  const std::int64_t row_bytes = shape_[0] == 0 ? 0 : num_bytes() / shape_[0];
  dims[0] = end - begin;
  return {static_cast<std::byte*>(data_) + begin * row_bytes,
          Shape(std::span<const std::int64_t>(dims.data(), shape_.dims().size())), dtype_};
}

TensorView TensorView::at(std::int64_t index) const {
  const TensorView row = slice(index, index + 1);
  return row.reshape(Shape(shape_.dims().subspan(1)));
}

Tensor::Tensor(const Shape& shape, DType dtype)
    : storage_(memory::allocate(shape.numel() * size_of(dtype))),
      view_(storage_.get(), shape, dtype) {}

Tensor Tensor::zeros(const Shape& shape, DType dtype) {
  Tensor tensor;
  tensor.storage_ = memory::allocate_zeros(shape.numel() * size_of(dtype));
  tensor.view_ = {tensor.storage_.get(), shape, dtype};
  return tensor;
}

Tensor Tensor::at(std::int64_t index) const {
  Tensor row(*this);
  row.view_ = view_.at(index);
  return row;
}

void expect_shape(const char* name, const TensorView& view, const Shape& shape) {
  TTT_CHECK(!view.empty(), "{} is missing; {} expected", name, shape.str());
  TTT_CHECK(view.shape() == shape, "{} has shape {}, expected {}", name, view.shape().str(),
            shape.str());
}

void copy(const TensorView& from, const TensorView& to) {
  TTT_CHECK(from.shape() == to.shape(), "copy of {} to {}", from.shape().str(), to.shape().str());
  if (from.dtype() == to.dtype()) {
    if (from.numel() > 0) {
      std::memcpy(to.raw(), from.raw(), static_cast<std::size_t>(from.num_bytes()));
    }
    return;
  }
  visit_float(from.dtype(), [&](auto source) {
    visit_float(to.dtype(), [&](auto target) {
      using From = decltype(source);
      using To = decltype(target);
      std::ranges::transform(from.span<From>(), to.data<To>(), convert<To, From>);
    });
  });
}

void fill(const TensorView& view, double value) {
  visit_float(view.dtype(), [&](auto element) {
    using T = decltype(element);
    std::ranges::fill(view.span<T>(), convert<T, double>(value));
  });
}

Tensor to_dtype(const TensorView& view, DType dtype) {
  Tensor result(view.shape(), dtype);
  copy(view, result);
  return result;
}

}  // namespace ttt
