#pragma once
// How loops over rows are cut for threads: blocks whose sizes depend on the shape alone, so that sums over rows have
// the same bits on any number of threads.

#include <algorithm>
#include <cstdint>

#include "core/base/tensor.h"

namespace ttt::kernels {

/// Calls body(begin, end) for blocks of [0, count) in parallel; an item costs about `width` elementary steps. Only for
/// items independent of each other. One block runs on the calling thread alone. `body` must not throw.
template <typename F>
void for_each_block(std::int64_t count, std::int64_t width, F&& body) {
  constexpr std::int64_t kStepsPerBlock = 16384;  // some microseconds: well above starting a team
  const std::int64_t block =
      std::max<std::int64_t>(1, kStepsPerBlock / std::max<std::int64_t>(1, width));
  const std::int64_t num_blocks = (count + block - 1) / block;
#pragma omp parallel for schedule(static) if (num_blocks > 1)
  for (std::int64_t i = 0; i < num_blocks; ++i) body(i * block, std::min(count, (i + 1) * block));
}

/// Sums over rows of `width` numbers a row, in double: partial sums of fixed blocks of rows, added in block order.
class RowSums {
 public:
  RowSums(std::int64_t rows, std::int64_t width)
      : rows_(rows),
        width_(width),
        block_(std::max<std::int64_t>(kMinRowsPerBlock, (rows + kMaxBlocks - 1) / kMaxBlocks)),
        num_blocks_((rows + block_ - 1) / block_),
        partial_(Shape{num_blocks_, width}, DType::kF64) {}

  /// Calls body(begin, end, sums) for the blocks in parallel; `body` adds to sums [width] and must not throw.
  template <typename F>
  void for_each_block(F&& body) {
    double* const partial = partial_.data<double>();
#pragma omp parallel for schedule(static) if (num_blocks_ > 1)
    for (std::int64_t i = 0; i < num_blocks_; ++i) {
      double* const sums = partial + i * width_;
      std::fill_n(sums, width_, 0.0);
      body(i * block_, std::min(rows_, (i + 1) * block_), sums);
    }
  }

  /// Calls body(row, sums) for all rows in the same way.
  template <typename F>
  void for_each_row(F&& body) {
    for_each_block([&](std::int64_t begin, std::int64_t end, double* sums) {
      for (std::int64_t row = begin; row < end; ++row) body(row, sums);
    });
  }

  /// target[c] += the sum of column first + c, for c in [0, count).
  template <typename T>
  void add_to(T* target, std::int64_t count, std::int64_t first = 0) const {
    const double* const partial = partial_.data<double>() + first;
    kernels::for_each_block(count, num_blocks_, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t c = begin; c < end; ++c) {
        double sum = 0;
        for (std::int64_t i = 0; i < num_blocks_; ++i) sum += partial[i * width_ + c];
        target[c] = static_cast<T>(static_cast<double>(target[c]) + sum);
      }
    });
  }

 private:
  static constexpr std::int64_t kMinRowsPerBlock = 32;
  static constexpr std::int64_t kMaxBlocks = 64;

  std::int64_t rows_;
  std::int64_t width_;
  std::int64_t block_;
  std::int64_t num_blocks_;
  Tensor partial_;
};

}  // namespace ttt::kernels
