#include "core/sequence_exchange.h"

#include <algorithm>
#include <utility>

#include "configs/sequence_split.h"
#include "core/token_range.h"
#include "kernels/copy.h"

namespace ttt {
namespace {

std::int64_t longest_segment(const SequenceExchange& sequence) {
  std::int64_t longest = 0;
  for (std::size_t r = 1; r < sequence.bounds().size(); ++r) {
    longest = std::max(longest, sequence.bounds()[r] - sequence.bounds()[r - 1]);
  }
  return longest;
}

// One block a rank, each [B, longest segment, channels]: what an all-to-all takes when segments differ by a unit.
struct Blocks {
  Tensor sent, received;

  Blocks(const SequenceExchange& sequence, const Tensor& x, std::int64_t channels)
      : sent({sequence.size(), x.size(0), longest_segment(sequence), channels}, x.dtype()),
        received(sent.shape(), x.dtype()) {}

  // The first `tokens` tokens of sequence b in the block of rank r.
  static TensorView part(const Tensor& blocks, std::int64_t r, std::int64_t b,
                         std::int64_t tokens) {
    const Shape block{blocks.size(1), blocks.size(2), blocks.size(3)};
    return sequence_tokens(blocks.view().slice(r, r + 1).reshape(block), b, 0, tokens);
  }
};

template <typename F>
void for_each_part(const SequenceExchange& sequence, std::int64_t batch, F&& f) {
  for (std::int64_t r = 0; r < sequence.size(); ++r) {
    for (std::int64_t b = 0; b < batch; ++b) f(r, b);
  }
}

}  // namespace

SequenceSplit sequence_split(const config::RunConfig& config) {
  const bool exchanges_heads =
      config::resolve_sequence_exchange(config) == config::ParallelConfig::HEAD_EXCHANGE;
  // What cannot be cut has one rank.
  const std::int64_t unit = std::max<std::int64_t>(1, config::sequence_unit(config));
  return {exchanges_heads ? SequenceForm::kHeadExchange : SequenceForm::kStatePassing,
          config::sequence_bounds(config.data().context_length(), unit,
                                  config.parallel().sequence_ranks())};
}

SequenceExchange::SequenceExchange(SequenceSplit split, int rank)
    : split_(std::move(split)), rank_(rank) {
  TTT_CHECK(rank >= 0 && rank < size(), "rank {} of {} segments", rank, size());
}

ResplitExchange::ResplitExchange(SequenceExchange& exchange, std::vector<std::int64_t> bounds)
    : SequenceExchange({exchange.form(), std::move(bounds)}, exchange.rank()), exchange_(exchange) {
  TTT_CHECK(size() == exchange.size(), "{} segments for {} ranks", size(), exchange.size());
}

void ResplitExchange::send(TensorView view, Neighbour to, Stream& stream) {
  exchange_.send(view, to, stream);
}

void ResplitExchange::receive(TensorView view, Neighbour from, Stream& stream) {
  exchange_.receive(view, from, stream);
}

void ResplitExchange::all_to_all(TensorView in, TensorView out, Stream& stream) {
  exchange_.all_to_all(in, out, stream);
}

ReplayedExchange::ReplayedExchange(SequenceExchange& exchange)
    : SequenceExchange(exchange.split(), exchange.rank()), exchange_(exchange) {}

void ReplayedExchange::send(TensorView view, Neighbour to, Stream& stream) {
  if (!replays_) exchange_.send(view, to, stream);
}

void ReplayedExchange::receive(TensorView view, Neighbour from, Stream& stream) {
  if (replays_) {
    TTT_CHECK(!received_.empty(), "the second forward receives more than the first");
    kernels::copy(received_.front(), view, stream);
    received_.pop_front();
  } else {
    exchange_.receive(view, from, stream);
    received_.push_back(kernels::to_dtype(view, view.dtype(), stream));
  }
}

void ReplayedExchange::all_to_all(TensorView in, TensorView out, Stream& stream) {
  exchange_.all_to_all(in, out, stream);
}

bool uses(const Context& context, SequenceForm form) {
  return context.sequence != nullptr && context.sequence->form() == form;
}

bool receives_state(const Context& context) {
  return uses(context, SequenceForm::kStatePassing) && !context.sequence->is_first();
}

bool sends_state(const Context& context) {
  return uses(context, SequenceForm::kStatePassing) && !context.sequence->is_last();
}

std::int64_t rows_of_state_group(std::int64_t batch, std::int64_t heads, Device device) {
  // (row, head) pairs run in parallel: on a thread each, or on a multiprocessor. Not the number of threads itself, on which
  // no bit may depend.
  const std::int64_t pairs = device == Device::kCuda ? 128 : 16;
  return std::clamp<std::int64_t>((pairs + heads - 1) / heads, 1, batch);
}

std::vector<FlatRange> state_groups(std::int64_t batch, std::int64_t heads,
                                    const Context& context) {
  const std::int64_t rows = uses(context, SequenceForm::kStatePassing)
                                ? rows_of_state_group(batch, heads, context.stream.device())
                                : batch;
  std::vector<FlatRange> groups;
  for (std::int64_t begin = 0; begin < batch; begin += rows) {
    groups.push_back({begin, std::min(begin + rows, batch)});
  }
  return groups;
}

Tensor exchange_halo(TensorView x, std::int64_t rows, Context& context) {
  SequenceExchange* const sequence = context.sequence;
  if (sequence == nullptr || rows == 0) return {};
  const std::int64_t tokens = x.size(1);
  if (!sequence->is_last()) {
    TTT_CHECK(tokens >= rows, "a segment of {} tokens hands on {}", tokens, rows);
    sequence->send(token_range(x, tokens - rows, tokens, context.stream), Neighbour::kNext,
                   context.stream);
  }
  if (sequence->is_first()) return {};
  Tensor halo({x.size(0), rows, x.size(2)}, x.dtype());
  sequence->receive(halo, Neighbour::kPrevious, context.stream);
  return halo;
}

void return_halo(TensorView d_halo, std::int64_t rows, TensorView d_x, Context& context) {
  SequenceExchange* const sequence = context.sequence;
  if (sequence == nullptr || rows == 0) return;
  if (!sequence->is_first()) sequence->send(d_halo, Neighbour::kPrevious, context.stream);
  if (sequence->is_last()) return;
  const Tensor d_end({d_x.size(0), rows, d_x.size(2)}, d_x.dtype());
  sequence->receive(d_end, Neighbour::kNext, context.stream);
  add_token_range(d_end, d_x, d_x.size(1) - rows, context.stream);
}

Tensor tokens_to_heads(const Tensor& x, Context& context) {
  if (!uses(context, SequenceForm::kHeadExchange)) return x;
  SequenceExchange& sequence = *context.sequence;
  const std::vector<std::int64_t>& bounds = sequence.bounds();
  const std::int64_t batch = x.size(0);
  const std::int64_t tokens = x.size(1);
  TTT_CHECK(tokens == sequence.end() - sequence.begin() && x.size(2) % sequence.size() == 0,
            "{} to the heads of {} ranks, from tokens {} to {}", x.shape().str(), sequence.size(),
            sequence.begin(), sequence.end());
  const std::int64_t channels = x.size(2) / sequence.size();
  const Blocks blocks(sequence, x, channels);
  for_each_part(sequence, batch, [&](std::int64_t r, std::int64_t b) {
    kernels::copy_columns(sequence_tokens(x, b, 0, tokens), r * channels,
                          Blocks::part(blocks.sent, r, b, tokens), 0, channels, context.stream);
  });
  sequence.all_to_all(blocks.sent, blocks.received, context.stream);
  Tensor y({batch, bounds.back(), channels}, x.dtype());
  for_each_part(sequence, batch, [&](std::int64_t r, std::int64_t b) {
    const std::int64_t begin = bounds[static_cast<std::size_t>(r)];
    const std::int64_t end = bounds[static_cast<std::size_t>(r) + 1];
    kernels::copy(Blocks::part(blocks.received, r, b, end - begin),
                  sequence_tokens(y, b, begin, end), context.stream);
  });
  return y;
}

Tensor heads_to_tokens(const Tensor& y, Context& context) {
  if (!uses(context, SequenceForm::kHeadExchange)) return y;
  SequenceExchange& sequence = *context.sequence;
  const std::vector<std::int64_t>& bounds = sequence.bounds();
  const std::int64_t batch = y.size(0);
  const std::int64_t channels = y.size(2);
  const std::int64_t tokens = sequence.end() - sequence.begin();
  TTT_CHECK(y.size(1) == bounds.back(), "{}: heads hold all {} tokens", y.shape().str(),
            bounds.back());
  const Blocks blocks(sequence, y, channels);
  for_each_part(sequence, batch, [&](std::int64_t r, std::int64_t b) {
    const std::int64_t begin = bounds[static_cast<std::size_t>(r)];
    const std::int64_t end = bounds[static_cast<std::size_t>(r) + 1];
    kernels::copy(sequence_tokens(y, b, begin, end), Blocks::part(blocks.sent, r, b, end - begin),
                  context.stream);
  });
  sequence.all_to_all(blocks.sent, blocks.received, context.stream);
  Tensor x({batch, tokens, channels * sequence.size()}, y.dtype());
  for_each_part(sequence, batch, [&](std::int64_t r, std::int64_t b) {
    kernels::copy_columns(Blocks::part(blocks.received, r, b, tokens), 0,
                          sequence_tokens(x, b, 0, tokens), r * channels, channels, context.stream);
  });
  return x;
}

TensorView own_heads(TensorView parameter, Context& context) {
  if (!uses(context, SequenceForm::kHeadExchange)) return parameter;
  const std::int64_t share = parameter.size(0) / context.sequence->size();
  return parameter.slice(context.sequence->rank() * share, (context.sequence->rank() + 1) * share);
}

}  // namespace ttt
