#pragma once
// Token embedding.
//
//   y[n] = table[ids[n]];  d_table[ids[n]] += d_y[n]
//
// Dims: N tokens, V vocabulary, C channels.
// Numerics: F32 and F64; backward adds in token order, so the bits do not depend on the number of threads.
// Errors: kCorruptInput when an id is outside [0, V), naming the position and the id.
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
