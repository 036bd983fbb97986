#pragma once
// Attention by a library in place of the kernels here.

#include <initializer_list>

#include "kernels/attention.h"

namespace ttt::kernels::cuda {

/// For BF16 of head dims 64, 96 and 128, 16-byte aligned, with as many queries as keys. Arguments are those of
/// kernels/attention.h. lse means the same here and there, so that forward and backward may come from different
/// implementations.
struct AttentionLibrary {
  decltype(&kernels::attention_forward) forward;
  /// False, with nothing done, when it would take too much memory.
  bool (*backward)(TensorView q, TensorView k, TensorView v, TensorView out, TensorView lse,
                   TensorView d_out, TensorView d_q, TensorView d_k, TensorView d_v, double scale,
                   Stream& stream);
};

/// What the environment variable TTT_ATTENTION chooses: null for `own`, which is the default; cuDNN's fused attention
/// for `cudnn`. Fails with kUsage for another value and where this program or this machine has no cuDNN.
const AttentionLibrary* attention_library();

/// The library that computes attention of queries q and keys k, or null: `all` are what it would read and write.
const AttentionLibrary* library_for(TensorView q, TensorView k,
                                    std::initializer_list<TensorView> all);

}  // namespace ttt::kernels::cuda
