#pragma once
// Tensor owns, TensorView borrows. Both are dense and row-major; counts are in elements.

#include <cstdint>
#include <memory>
#include <span>

#include "core/base/dtype.h"
#include "core/base/error.h"
#include "core/base/shape.h"

namespace ttt {

/// A borrowed tensor: cheap to copy; whoever made it must outlive it. A default view is empty.
class TensorView {
 public:
  TensorView() = default;
  TensorView(void* data, const Shape& shape, DType dtype)
      : data_(data), shape_(shape), dtype_(dtype) {}

  [[nodiscard]] bool empty() const { return data_ == nullptr; }
  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] std::int64_t size(int dim) const { return shape_[dim]; }
  [[nodiscard]] std::int64_t numel() const { return shape_.numel(); }
  [[nodiscard]] DType dtype() const { return dtype_; }
  [[nodiscard]] std::int64_t num_bytes() const { return numel() * size_of(dtype_); }
  [[nodiscard]] void* raw() const { return data_; }

  /// The elements; throws unless T is the element type.
  template <typename T>
  [[nodiscard]] T* data() const {
    TTT_CHECK(dtype_ == kDType<T> && kHasDType<T>, "tensor {} of {} read as {}", shape_.str(),
              name_of(dtype_), name_of(kDType<T>));
    return static_cast<T*>(data_);
  }
  template <typename T>
  [[nodiscard]] std::span<T> span() const {
    return {data<T>(), static_cast<std::size_t>(numel())};
  }

  /// The same elements under another shape of equal count.
  [[nodiscard]] TensorView reshape(const Shape& shape) const;
  /// Rows [begin, end) of dimension 0.
  [[nodiscard]] TensorView slice(std::int64_t begin, std::int64_t end) const;
  /// Row `index` of dimension 0, without that dimension.
  [[nodiscard]] TensorView at(std::int64_t index) const;

 private:
  void* data_ = nullptr;
  Shape shape_{0};
  DType dtype_ = DType::kF32;
};

class Tensor {
 public:
  Tensor() = default;
  /// Uninitialised elements.
  Tensor(const Shape& shape, DType dtype);
  static Tensor zeros(const Shape& shape, DType dtype);

  [[nodiscard]] TensorView view() const { return view_; }
  /// Row `index` of dimension 0, without that dimension: owns the whole memory with the others.
  [[nodiscard]] Tensor at(std::int64_t index) const;
  // A tensor is passed where a view is taken everywhere.
  // NOLINTNEXTLINE(google-explicit-constructor)
  operator TensorView() const { return view_; }
  [[nodiscard]] bool empty() const { return view_.empty(); }
  [[nodiscard]] const Shape& shape() const { return view_.shape(); }
  [[nodiscard]] std::int64_t size(int dim) const { return view_.size(dim); }
  [[nodiscard]] std::int64_t numel() const { return view_.numel(); }
  [[nodiscard]] DType dtype() const { return view_.dtype(); }
  template <typename T>
  [[nodiscard]] T* data() const {
    return view_.data<T>();
  }
  template <typename T>
  [[nodiscard]] std::span<T> span() const {
    return view_.span<T>();
  }

 private:
  std::shared_ptr<std::byte> storage_;
  TensorView view_;
};

/// Throws unless `view` has exactly this shape; `name` is the argument's name in the message.
void expect_shape(const char* name, const TensorView& view, const Shape& shape);

/// Element-wise copy between equal shapes, converting between F64, F32 and BF16.
void copy(const TensorView& from, const TensorView& to);
/// Sets every element (floating-point types) to `value`.
void fill(const TensorView& view, double value);
/// A copy in another floating-point type.
Tensor to_dtype(const TensorView& view, DType dtype);

}  // namespace ttt
