#pragma once
// The rotations of RoPE on CUDA (kernels/rope.h).

#include "kernels/rope.h"

namespace ttt::kernels::cuda {

/// [E, F] F32, pairs (cosine, sign * sine): entry e is the position of token e; tokens E apart have equal positions.
Tensor rotation_table(std::int64_t tokens, std::int64_t head_dim, const RopeOptions& options,
                      double sign, Stream& stream);

}  // namespace ttt::kernels::cuda
