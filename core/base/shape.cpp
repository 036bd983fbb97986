#include "core/base/shape.h"

#include <algorithm>

#include "core/base/dtype.h"
#include "core/base/error.h"

namespace ttt {

Shape::Shape(std::initializer_list<std::int64_t> dims)
    : Shape(std::span<const std::int64_t>(dims.begin(), dims.size())) {}

Shape::Shape(std::span<const std::int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  TTT_CHECK(dims.size() <= kMaxRank, "a tensor has at most {} dimensions, not {}", kMaxRank,
            dims.size());
  std::copy(dims.begin(), dims.end(), dims_.begin());
  for (const std::int64_t extent : dims) TTT_CHECK(extent >= 0, "negative extent in {}", str());
}

std::int64_t Shape::operator[](int dim) const {
  const int index = dim < 0 ? dim + rank_ : dim;
  TTT_CHECK(index >= 0 && index < rank_, "dimension {} of shape {}", dim, str());
  return dims_[static_cast<std::size_t>(index)];
}

std::int64_t Shape::numel() const {
  std::int64_t count = 1;
  for (const std::int64_t extent : dims()) count *= extent;
  return count;
}

std::string Shape::str() const { return fmt::format("[{}]", fmt::join(dims(), ", ")); }

bool operator==(const Shape& a, const Shape& b) { return std::ranges::equal(a.dims(), b.dims()); }

std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kU16:
      return 2;
    case DType::kU8:
      return 1;
  }
  TTT_CHECK(false, "unknown dtype");
}

std::string name_of(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return "F64";
    case DType::kI64:
      return "I64";
    case DType::kF32:
      return "F32";
    case DType::kI32:
      return "I32";
    case DType::kBF16:
      return "BF16";
    case DType::kU16:
      return "U16";
    case DType::kU8:
      return "U8";
  }
  TTT_CHECK(false, "unknown dtype");
}

}  // namespace ttt
