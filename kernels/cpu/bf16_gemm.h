#pragma once
// bf16 products on one thread, through oneDNN.

#include <cstdint>

#include "core/base/tensor.h"
#include "kernels/cpu/blas.h"

namespace ttt::kernels::cpu {

/// True on CPUs with AMX. Elsewhere the same product of rounded operands is faster in fp32 through BLAS: the AVX-512
/// instructions for bf16 reached 86 GFLOP/s a core where fp32 reached 154, and older CPUs have none.
bool prefers_bf16_gemm();

/// C = op(A) op(B), plus C when `accumulate`; products are summed in fp32. As `gemm` otherwise.
void bf16_gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, const BFloat16* a,
               std::int64_t ld_a, const BFloat16* b, std::int64_t ld_b, bool accumulate, float* c,
               std::int64_t ld_c);

/// `from` (F32 or BF16) rounded to bf16, as BF16; or the same values as F32, for products through BLAS.
Tensor to_bf16(const TensorView& from);
Tensor to_bf16_values(const TensorView& from);
/// F32 rounded to bf16 in place.
void round_to_bf16(const TensorView& values);

}  // namespace ttt::kernels::cpu
