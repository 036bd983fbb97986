#include "dist/contracts.h"

#include <algorithm>
#include <array>

namespace ttt::dist {
namespace {

void check_same_dtype(const char* a_name, const TensorView& a, const char* b_name,
                      const TensorView& b) {
  TTT_CHECK(a.dtype() == b.dtype(), "{} is {}, but {} is {}", a_name, name_of(a.dtype()), b_name,
            name_of(b.dtype()));
}

}  // namespace

void check_stacked(const char* part_name, const TensorView& part, const char* stack_name,
                   const TensorView& stack, int size) {
  check_same_dtype(part_name, part, stack_name, stack);
  const auto dims = part.shape().dims();
  TTT_CHECK(part.shape().rank() < Shape::kMaxRank, "{} has {} dimensions, at most {} fit",
            part_name, part.shape().rank(), Shape::kMaxRank - 1);
  std::array<std::int64_t, Shape::kMaxRank> stacked{size};
  std::copy(dims.begin(), dims.end(), stacked.begin() + 1);
  expect_shape(stack_name, stack,
               Shape(std::span<const std::int64_t>(stacked.data(), dims.size() + 1)));
}

void check_all_to_all(const TensorView& in, const TensorView& out, int size) {
  check_same_dtype("in", in, "out", out);
  TTT_CHECK(in.shape().rank() >= 1 && in.size(0) == size,
            "in is {}, its first dimension must be the {} ranks", in.shape().str(), size);
  expect_shape("out", out, in.shape());
}

void check_summable(const TensorView& view) {
  TTT_CHECK(
      view.dtype() == DType::kF64 || view.dtype() == DType::kF32 || view.dtype() == DType::kI64,
      "sums are of F64, F32 or I64, not {}", name_of(view.dtype()));
}

void check_peer(int peer, int rank, int size) {
  TTT_CHECK(peer >= 0 && peer < size && peer != rank, "peer {} of rank {} among {} ranks", peer,
            rank, size);
}

void check_root(int root, int size) {
  TTT_CHECK(root >= 0 && root < size, "root {} among {} ranks", root, size);
}

}  // namespace ttt::dist
