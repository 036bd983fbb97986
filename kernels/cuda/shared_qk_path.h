#pragma once
// Which calls of kernels/shared_qk.h the kernels of one pass serve; the others are two convolutions and two rotations.

#include "kernels/shared_qk.h"

namespace ttt::kernels::cuda {

/// A thread holds four channels, so two pairs of neighbours, and four rows.
inline bool is_one_pass(const TensorView& p, const TensorView& w_q,
                        const std::optional<RopeOptions>& rope) {
  if (w_q.size(-1) > 4) return false;
  return rope ? rope->pairing == RopePairing::kInterleaved && p.size(3) % 4 == 0
              : p.size(2) * p.size(3) % 4 == 0;
}

}  // namespace ttt::kernels::cuda
