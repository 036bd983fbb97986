#pragma once
// Single-threaded BLAS calls and the loop over blocks that runs them in parallel.
//
// Numerics: a block's result depends on its shape alone, and the blocks on the shapes of the tensors, so the bits do
//   not depend on the number of threads.

#include <omp.h>

#include <cstdint>
#include <exception>

namespace ttt::kernels::cpu {

enum class Op { kNone, kTranspose };

/// C = alpha op(A) op(B) + beta C, row-major; op(A) is [m, k], op(B) is [k, n]; ld* are row strides in elements.
/// Call it inside `for_each_block`: outside, OpenBLAS may start threads of its own.
void gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
          const float* a, std::int64_t ld_a, const float* b, std::int64_t ld_b, float beta,
          float* c, std::int64_t ld_c);
void gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, double alpha,
          const double* a, std::int64_t ld_a, const double* b, std::int64_t ld_b, double beta,
          double* c, std::int64_t ld_c);

/// Makes OpenBLAS use the kernels of this CPU and take memory for all threads; called by `for_each_block`.
/// Errors: kOutOfMemory.
void prepare_blas();

/// body(i) for i in [0, count) on all threads, in any order; rethrows the first exception of any body.
template <typename Body>
void for_each_block(std::int64_t count, const Body& body) {
  prepare_blas();
  std::exception_ptr error;
#pragma omp parallel
  {
    // Of this region's task only: libraries called from the body must not fork again, nor choose their blocking by the
    // number of threads.
    omp_set_num_threads(1);
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < count; ++i) {
      try {
        body(i);
      } catch (...) {
#pragma omp critical(ttt_for_each_block)
        if (!error) error = std::current_exception();
      }
    }
  }
  if (error) std::rethrow_exception(error);
}

/// Extent [begin, end) cut into `count` nearly equal parts of at most `largest`, multiples of 16 but for the last.
struct Partition {
  Partition(std::int64_t extent, std::int64_t largest) : extent_(extent) {
    const std::int64_t parts = extent == 0 ? 1 : (extent + largest - 1) / largest;
    step_ = ((extent + parts - 1) / parts + 15) / 16 * 16;
    if (step_ == 0) step_ = 16;
  }
  [[nodiscard]] std::int64_t count() const { return (extent_ + step_ - 1) / step_; }
  [[nodiscard]] std::int64_t begin(std::int64_t part) const { return part * step_; }
  [[nodiscard]] std::int64_t size(std::int64_t part) const {
    const std::int64_t left = extent_ - part * step_;
    return left < step_ ? left : step_;
  }

 private:
  std::int64_t extent_;
  std::int64_t step_;
};

}  // namespace ttt::kernels::cpu
