#pragma once
// The gradients that (batch, head) pairs share: blocks leave their parts, which are then added in a fixed order.

#include "core/base/tensor.h"
#include "kernels/cuda/ttt_tiles.h"
#include "kernels/ttt.h"

namespace ttt::kernels::cuda::fused {

/// Floats of a part: of d_token_scale [16], d_norm_weight [F], d_norm_bias [F].
constexpr std::int64_t partial_size(std::int64_t features) { return kTokens + 2 * features; }

/// d_token_scale, d_norm_weight, d_norm_bias += the sums of `partials` [B, H, parts of a pair, 16 + F + F].
void add_partials(const Tensor& partials, const TttInputGradients& gradients, Stream& stream);

}  // namespace ttt::kernels::cuda::fused
