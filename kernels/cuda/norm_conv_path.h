#pragma once
// Which calls of kernels/norm_conv.h the kernels of one pass serve; the others are a norm and a convolution.

#include "core/base/tensor.h"

namespace ttt::kernels::cuda {

/// A block of at most 512 threads, of four channels each, holds a row: 2,048 channels.
inline bool is_one_pass(const TensorView& x, const TensorView& w) {
  return w.size(-1) <= 4 && x.size(2) % 4 == 0 && x.size(2) <= 2048;
}

}  // namespace ttt::kernels::cuda
