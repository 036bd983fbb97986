#pragma once
// y = x W^T for the few rows of decoding: W is streamed once, which memory bandwidth bounds.

#include "core/base/tensor.h"

namespace ttt::kernels::cpu {

/// Most rows of x; with more, blocked products are faster.
inline constexpr std::int64_t kFewRows = 8;

/// x [N, I] with N <= kFewRows, w [O, I], y [N, O] out; F32 or F64, all alike. The bits of a row depend neither on the
/// other rows nor on the number of threads.
void few_rows_forward(const TensorView& x, const TensorView& w, const TensorView& y);

}  // namespace ttt::kernels::cpu
