#pragma once
// Token embedding.
//
//   y[n] = table[ids[n]];  d_table[ids[n]] += d_y[n]
//
// Dims: N tokens, V vocabulary, C channels.
// Numerics: F32 and F64; on CUDA y and d_y may be BF16. Backward adds in token order, in the table's type, so the bits
//   do not depend on the number of threads.
// Errors: kCorruptInput when an id is outside [0, V), naming the position and the id. On CUDA such a token's y is NaN,
//   and its d_y is left out: the host would have to wait for the ids.
// Source: any language model.

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::kernels {

void embedding_forward(TensorView ids,    // [N] I64
                       TensorView table,  // [V, C]
                       TensorView y,      // [N, C] out
                       Stream& stream);
void embedding_backward(TensorView ids,      // [N] I64
                        TensorView d_y,      // [N, C]
                        TensorView d_table,  // [V, C] in-out, added to
                        Stream& stream);

}  // namespace ttt::kernels
