#pragma once
// Rotary position embedding.
//
//   angle(p, i) = p * base^(-2i/F), i < F/2;  (a, b) -> (a cos - b sin, a sin + b cos)
//   pair i is (2i, 2i+1) for kInterleaved and (i, i + F/2) for kHalves.
//   p = (first_position + t) mod period, or first_position + t when period is 0.
//
// Dims: B batch, T tokens, H heads, F head dim (even).
// Numerics: F32 and F64, on CUDA F32 and BF16; angles, sines and cosines are computed in fp64.
// Errors: kInternal when F is odd or shapes do not fit.
// Source: arXiv:2104.09864; arXiv:2407.04620 uses kInterleaved with period = mini-batch size.

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

enum class RopePairing { kInterleaved, kHalves };

struct RopeOptions {
  RopePairing pairing = RopePairing::kInterleaved;
  double base = 10000.0;
  std::int64_t period = 0;
  std::int64_t first_position = 0;
};

void rope_forward(TensorView x,  // [B, T, H, F]
                  TensorView y,  // [B, T, H, F] out; may alias x
                  const RopeOptions& options, Stream& stream);

/// The inverse rotation.
void rope_backward(TensorView d_y,  // [B, T, H, F]
                   TensorView d_x,  // [B, T, H, F] out; may alias d_y
                   const RopeOptions& options, Stream& stream);

}  // namespace ttt::kernels
