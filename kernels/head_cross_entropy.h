#pragma once
// The language-model head fused with cross-entropy, a chunk of tokens at a time, so that the logits of all tokens
// never exist together.
//
//   z = x W^T;  nll[n] = logsumexp(z[n]) - z[n, target[n]];  loss = sum_n weight[n] nll[n]
//   d_z = weight[n] (softmax(z) - onehot(target));  d_x = d_z W;  d_w += d_z^T x
//
// Dims: N tokens, C channels, V vocabulary.
// Numerics: F32 and F64 with softmax and logsumexp in fp32 or wider; nll and token weights are F64. On CUDA x, d_x and
//   with them the logits may be BF16; d_w is F32, and w F32 or, in bf16 products, BF16. A token of weight zero has a
//   zero gradient and its target may be anything (nll 0 when the target is outside the vocabulary). Chunk sizes
//   depend on shapes alone, so the bits do not depend on the number of threads.
// Errors: kCorruptInput when a target of non-zero weight is outside [0, V). On CUDA that token's nll and d_x, and d_w,
//   are NaN: the host would have to wait for the targets.
// Source: arXiv:2407.04620 (training objective); chunking after arXiv:2410.10989 (Liger kernel).

#include <algorithm>

#include "kernels/matmul.h"

namespace ttt::kernels {

/// Rows of logits that exist at once. Long chunks read the head and its gradient less often; their logits stay within
/// 32 MiB on the CPU and 512 MiB on a device, or are 64 rows.
inline std::int64_t head_chunk_rows(Device device, std::int64_t tokens, std::int64_t vocab,
                                    std::int64_t element_bytes) {
  const bool is_cpu = device == Device::kCpu;
  const std::int64_t bytes = std::int64_t{is_cpu ? 32 : 512} << 20;
  const std::int64_t rows = bytes / std::max<std::int64_t>(vocab * element_bytes, 1);
  return std::min(tokens, std::clamp<std::int64_t>(rows / 64 * 64, 64, is_cpu ? 512 : 4096));
}

/// Loss and, in the same pass, gradients. With empty d_x and d_w it only fills `nll`.
void head_cross_entropy(TensorView x,             // [N, C]
                        TensorView w,             // [V, C]
                        TensorView targets,       // [N] I64
                        TensorView token_weight,  // [N] F64
                        TensorView nll,           // [N] F64 out, unweighted
                        TensorView d_x,           // [N, C] out; may be empty
                        TensorView d_w,           // [V, C] in-out, added to; may be empty
                        Precision precision, Stream& stream);

}  // namespace ttt::kernels
