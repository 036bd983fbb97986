#pragma once
// Tokens [begin, end) of every sequence of a [B, T, ...] tensor, which are not contiguous.

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt {

/// Gathered: [B, end - begin, ...]. Part and view are of the same type.
Tensor token_range(TensorView view, std::int64_t begin, std::int64_t end, Stream& stream);
/// Written into `view` from token `begin` on, or added there.
void put_token_range(TensorView part, TensorView view, std::int64_t begin, Stream& stream);
void add_token_range(TensorView part, TensorView view, std::int64_t begin, Stream& stream);

/// Tokens [begin, end) of sequence b, which are contiguous: [end - begin, rest].
TensorView sequence_tokens(TensorView view, std::int64_t b, std::int64_t begin, std::int64_t end);

}  // namespace ttt
