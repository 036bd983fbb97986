#pragma once
// Tokens [begin, end) of every sequence of a [B, T, ...] tensor, which are not contiguous.

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt {

/// Gathered: [B, end - begin, ...]. Part and view are of the same type.
Tensor token_range(TensorView view, std::int64_t begin, std::int64_t end, Stream& stream);
/// The same for reading: the view itself where the range is all of it.
class TokenRange {
 public:
  TokenRange(TensorView view, std::int64_t begin, std::int64_t end, Stream& stream)
      : is_all_(begin == 0 && end == view.size(1)),
        all_(view),
        copy_(is_all_ ? Tensor() : token_range(view, begin, end, stream)) {}

  [[nodiscard]] TensorView view() const { return is_all_ ? all_ : copy_.view(); }

 private:
  bool is_all_;
  TensorView all_;
  Tensor copy_;
};
/// Written into `view` from token `begin` on, or added there.
void put_token_range(TensorView part, TensorView view, std::int64_t begin, Stream& stream);
void add_token_range(TensorView part, TensorView view, std::int64_t begin, Stream& stream);

/// Tokens [begin, end) of sequence b, which are contiguous: [end - begin, rest].
TensorView sequence_tokens(TensorView view, std::int64_t b, std::int64_t begin, std::int64_t end);

}  // namespace ttt
