#pragma once
// The extents of a dense, row-major tensor.

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

namespace ttt {

class Shape {
 public:
  static constexpr int kMaxRank = 8;

  Shape() = default;  // rank 0: one element
  Shape(std::initializer_list<std::int64_t> dims);
  explicit Shape(std::span<const std::int64_t> dims);

  [[nodiscard]] int rank() const { return rank_; }
  /// Extent of dimension `dim`; negative counts from the last. Throws out of range.
  [[nodiscard]] std::int64_t operator[](int dim) const;
  /// Number of elements.
  [[nodiscard]] std::int64_t numel() const;
  [[nodiscard]] std::span<const std::int64_t> dims() const {
    return {dims_.data(), static_cast<std::size_t>(rank_)};
  }
  [[nodiscard]] std::string str() const;  // "[2, 3]"

  friend bool operator==(const Shape& a, const Shape& b);

 private:
  std::array<std::int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

}  // namespace ttt
