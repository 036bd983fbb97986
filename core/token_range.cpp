#include "core/token_range.h"

#include <algorithm>
#include <array>

#include "kernels/activation.h"
#include "kernels/copy.h"

namespace ttt {

TensorView sequence_tokens(TensorView view, std::int64_t b, std::int64_t begin, std::int64_t end) {
  const TensorView sequence = view.slice(b, b + 1);
  const std::int64_t tokens = view.size(1);
  return sequence.reshape({tokens, sequence.numel() / tokens}).slice(begin, end);
}

namespace {

// From tokens `from_begin` on to tokens `to_begin` on of every sequence: one op, however many there are.
void copy_tokens(TensorView from, std::int64_t from_begin, TensorView to, std::int64_t to_begin,
                 std::int64_t tokens, Stream& stream) {
  if (from.shape() == to.shape() && tokens == from.size(1)) return kernels::copy(from, to, stream);
  const auto rows = [](TensorView view) {
    return view.reshape({view.size(0), view.numel() / view.size(0)});
  };
  const std::int64_t width = from.numel() / (from.size(0) * from.size(1));
  kernels::copy_columns(rows(from), from_begin * width, rows(to), to_begin * width, tokens * width,
                        stream);
}

}  // namespace

Tensor token_range(TensorView view, std::int64_t begin, std::int64_t end, Stream& stream) {
  std::array<std::int64_t, Shape::kMaxRank> dims{};
  std::ranges::copy(view.shape().dims(), dims.begin());
  dims[1] = end - begin;
  Tensor part(Shape(std::span<const std::int64_t>(dims.data(), view.shape().dims().size())),
              view.dtype());
  copy_tokens(view, begin, part, 0, end - begin, stream);
  return part;
}

void put_token_range(TensorView part, TensorView view, std::int64_t begin, Stream& stream) {
  copy_tokens(part, 0, view, begin, part.size(1), stream);
}

void add_token_range(TensorView part, TensorView view, std::int64_t begin, Stream& stream) {
  const std::int64_t tokens = part.size(1);
  for (std::int64_t b = 0; b < view.size(0); ++b) {
    kernels::add(sequence_tokens(part, b, 0, tokens),
                 sequence_tokens(view, b, begin, begin + tokens), stream);
  }
}

}  // namespace ttt
