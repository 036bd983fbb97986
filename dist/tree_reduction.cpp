#include "dist/tree_reduction.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "core/base/memory.h"
#include "kernels/activation.h"
#include "kernels/copy.h"

namespace ttt::dist {
namespace {

constexpr memory::Purpose kGradients{"gradients"};

bool is_power_of_two(std::int64_t value) {
  return value > 0 && std::has_single_bit(static_cast<std::uint64_t>(value));
}

bool is_valid_split(std::int64_t virtual_shards, std::int64_t num_ranks) {
  return num_ranks == 1 ||
         (virtual_shards % num_ranks == 0 && is_power_of_two(virtual_shards / num_ranks));
}

/// "3 or 6": the numbers of ranks that V shards allow, nearest below and above.
std::string nearest_ranks(std::int64_t virtual_shards, std::int64_t num_ranks) {
  std::int64_t below = 1;
  std::int64_t above = 0;
  for (std::int64_t ranks = virtual_shards;; ranks /= 2) {
    if (ranks < num_ranks) {
      below = std::max(below, ranks);
      break;
    }
    above = ranks;
    if (ranks % 2 != 0) {
      break;
    }
  }
  return above == 0 ? fmt::format("{}", below) : fmt::format("{} or {}", below, above);
}

std::string nearest_shards(std::int64_t virtual_shards, std::int64_t num_ranks) {
  std::int64_t above = num_ranks;
  while (above < virtual_shards) {
    above *= 2;
  }
  return above == num_ranks ? fmt::format("{}", above) : fmt::format("{} or {}", above / 2, above);
}

struct Range {
  std::int64_t begin;
  std::int64_t end;

  [[nodiscard]] std::int64_t middle() const { return begin + (end - begin) / 2; }
};

/// Power-of-two ranks: at distance 1, 2, 4, ... partners halve the range they both hold, each adds
/// up one half; then the ranges are gathered on the way back.
void reduce_by_halving(Communicator& communicator, const TensorView& sum, const TensorView& buffer,
                       Stream& stream) {
  const int rank = communicator.rank();
  std::vector<Range> ranges = {{0, sum.numel()}};
  const auto kept_half = [&](const Range& whole, int distance) {
    return (rank & distance) == 0 ? Range{whole.begin, whole.middle()}
                                  : Range{whole.middle(), whole.end};
  };
  const auto given_half = [&](const Range& whole, int distance) {
    return (rank & distance) != 0 ? Range{whole.begin, whole.middle()}
                                  : Range{whole.middle(), whole.end};
  };
  const auto part = [](const TensorView& view, const Range& range) {
    return view.slice(range.begin, range.end);
  };
  for (int distance = 1; distance < communicator.size(); distance *= 2) {
    const Range kept = kept_half(ranges.back(), distance);
    const Range given = given_half(ranges.back(), distance);
    communicator.exchange(part(sum, given), part(buffer, kept), rank ^ distance, stream);
    kernels::add(part(buffer, kept), part(sum, kept), stream);
    ranges.push_back(kept);
  }
  for (int distance = communicator.size() / 2; distance >= 1; distance /= 2) {
    const Range mine = ranges.back();
    ranges.pop_back();
    const Range theirs = given_half(ranges.back(), distance);
    communicator.exchange(part(sum, mine), part(sum, theirs), rank ^ distance, stream);
  }
}

/// Any number of ranks: each node of the tree is added on the rank of its lowest shard.
void reduce_to_root(Communicator& communicator, const TensorView& sum, const TensorView& buffer,
                    Stream& stream) {
  const int rank = communicator.rank();
  for (int distance = 1; distance < communicator.size(); distance *= 2) {
    if (rank % (2 * distance) == distance) {
      communicator.send(sum, rank - distance, stream);
      break;
    }
    if (rank + distance < communicator.size()) {
      communicator.recv(buffer, rank + distance, stream);
      kernels::add(buffer, sum, stream);
    }
  }
  communicator.broadcast(sum, 0, stream);
}

}  // namespace

void validate_virtual_shards(std::int64_t virtual_shards, int num_ranks) {
  if (virtual_shards < 1 || num_ranks < 1) {
    fail(ExitCode::kUsage, "parallel.virtual_shards is {} on {} ranks; at least 1 is needed",
         virtual_shards, num_ranks);
  }
  if (!is_valid_split(virtual_shards, num_ranks)) {
    fail(ExitCode::kUsage,
         "parallel.virtual_shards = {} cannot be split over {} ranks: each rank needs a power of "
         "two of shards. With {} ranks use {} virtual shards; with {} virtual shards use {} ranks",
         virtual_shards, num_ranks, num_ranks, nearest_shards(virtual_shards, num_ranks),
         virtual_shards, nearest_ranks(virtual_shards, num_ranks));
  }
}

TreeAccumulator::TreeAccumulator(const Shape& shape, DType dtype) : shape_(shape), dtype_(dtype) {
  TTT_CHECK(dtype == DType::kF64 || dtype == DType::kF32, "gradient sums are of F64 or F32, not {}",
            name_of(dtype));
}

Tensor TreeAccumulator::take_buffer() {
  if (free_.empty()) {
    ++num_buffers_;
    const memory::Scope scope(kGradients);
    return {shape_, dtype_};
  }
  Tensor buffer = std::move(free_.back());
  free_.pop_back();
  return buffer;
}

TensorView TreeAccumulator::slot(Stream& stream) {
  if (!slot_.has_value()) {
    slot_ = take_buffer();
    kernels::fill(*slot_, 0.0, stream);
  }
  return *slot_;
}

void TreeAccumulator::push(Stream& stream) {
  TTT_CHECK(slot_.has_value(), "push without a slot");
  pending_.push_back({std::move(*slot_), 1});
  slot_.reset();
  ++num_pushed_;
  while (pending_.size() >= 2 &&
         pending_[pending_.size() - 2].num_shards == pending_.back().num_shards) {
    merge_last_two(stream);
  }
}

void TreeAccumulator::merge_last_two(Stream& stream) {
  Subtree right = std::move(pending_.back());
  pending_.pop_back();
  kernels::add(right.sum, pending_.back().sum, stream);
  pending_.back().num_shards += right.num_shards;
  free_.push_back(std::move(right.sum));
}

void TreeAccumulator::finish(Communicator& communicator, TensorView out, Stream& stream) {
  TTT_CHECK(!slot_.has_value(), "finish with a slot that was not pushed");
  TTT_CHECK(
      is_valid_split(num_pushed_ * communicator.size(), communicator.size()) && num_pushed_ > 0,
      "finish after {} shards on each of {} ranks", num_pushed_, communicator.size());
  expect_shape("out", out, shape_);
  TTT_CHECK(out.dtype() == dtype_, "out is {}, the sum is {}", name_of(out.dtype()),
            name_of(dtype_));
  while (pending_.size() >= 2) {  // an odd number of shards on one rank
    merge_last_two(stream);
  }
  kernels::copy(pending_.back().sum, out, stream);
  free_.push_back(std::move(pending_.back().sum));  // from here on only a receive buffer
  pending_.clear();
  num_pushed_ = 0;
  const Shape flat{out.numel()};
  const TensorView sum = out.reshape(flat);
  const TensorView buffer = free_.back().view().reshape(flat);
  if (is_power_of_two(communicator.size())) {
    reduce_by_halving(communicator, sum, buffer, stream);
  } else {
    reduce_to_root(communicator, sum, buffer, stream);
  }
}

}  // namespace ttt::dist
