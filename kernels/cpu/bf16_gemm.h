#pragma once
// bf16 products on one thread, through oneDNN.

#include <cstdint>

#include "core/base/dtype.h"
#include "kernels/cpu/blas.h"

namespace ttt::kernels::cpu {

/// False where oneDNN would fall back to its scalar reference (CPUs without AVX-512).
bool has_bf16_gemm();

/// C = op(A) op(B), plus C when `accumulate`; products are summed in fp32. As `gemm` otherwise.
void bf16_gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, const BFloat16* a,
               std::int64_t ld_a, const BFloat16* b, std::int64_t ld_b, bool accumulate, float* c,
               std::int64_t ld_c);

}  // namespace ttt::kernels::cpu
