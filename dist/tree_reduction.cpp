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
  if (is_merging_) start_anew();
  if (!slot_.has_value()) {
    slot_ = take_buffer();
    kernels::fill(*slot_, 0.0, stream);
  }
  return *slot_;
}

void TreeAccumulator::start_anew() {
  free_.push_back(std::move(*slot_));
  slot_.reset();
  for (Subtree& subtree : pending_) free_.push_back(std::move(subtree.sum));
  pending_.clear();
  num_pushed_ = 0;
  is_merging_ = false;
}

void TreeAccumulator::push(Stream& stream) {
  TTT_CHECK(slot_.has_value() && !is_merging_, "push without a slot");
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

TensorView TreeAccumulator::merge(const FlatRange& range, Stream& stream) {
  TTT_CHECK(slot_.has_value(), "merge without a slot");
  is_merging_ = true;
  const Shape flat{shape_.numel()};
  TensorView sum = slot_->view().reshape(flat);
  // As the pushes of all leaves would do, whatever their number: from the last subtree to the first.
  for (std::size_t i = pending_.size(); i-- > 0;) {
    const TensorView left = pending_[i].sum.view().reshape(flat);
    if (range.size() > 0) {
      kernels::add(sum.slice(range.begin, range.end), left.slice(range.begin, range.end), stream);
    }
    sum = left;
  }
  return sum;
}

}  // namespace ttt::dist
