#include "dist/gradient_sum.h"

#include <algorithm>
#include <utility>

#include "core/base/fault_point.h"
#include "core/base/timer.h"
#include "kernels/adamw.h"
#include "kernels/copy.h"
#include "kernels/non_finite.h"
#include "kernels/threads.h"

namespace ttt::dist {
namespace {

static_assert(kernels::kNonFiniteBlock == kernels::kSquaresBlock);

std::int64_t num_blocks(const FlatRange& range) {
  return (range.size() + kernels::kSquaresBlock - 1) / kernels::kSquaresBlock;
}

std::int64_t count_elements(const std::vector<FlatRange>& buckets) {
  std::int64_t end = 0;
  for (const FlatRange& bucket : buckets) {
    TTT_CHECK(bucket.begin == end && bucket.size() > 0, "a bucket [{}, {}) after element {}",
              bucket.begin, bucket.end, end);
    end = bucket.end;
  }
  return end;
}

}  // namespace

GradientSum::GradientSum(std::vector<FlatRange> buckets, DType dtype, GradientSumOptions options,
                         std::vector<Communicator*> axes)
    : buckets_(std::move(buckets)),
      options_(std::move(options)),
      axes_(std::move(axes)),
      accumulator_(Shape{count_elements(buckets_)}, dtype),
      num_unreduced_(buckets_.size()),
      num_gathered_(buckets_.size()) {
  std::int64_t blocks = 0;
  for (const FlatRange& bucket : buckets_) {
    first_blocks_.push_back(blocks);
    blocks += num_blocks(bucket);
  }
  squares_ = {{blocks}, DType::kF64};
  places_ = {{blocks}, DType::kF64};
  first_place_ = {{1}, DType::kF64};
  sum_of_squares_ = {{1}, DType::kF64};
  std::vector<Communicator*> used = axes_;
  const bool overlaps = options_.overlap && !is_alone();
  if (overlaps) {
    for (Communicator*& axis : used) {
      overlap_axes_.push_back(axis->duplicate_for_overlap());
      axis = overlap_axes_.back().get();
    }
  }
  collectives_ = std::make_unique<TreeCollectives>(used, kernels::kSquaresBlock, buckets_, dtype);
  for (const FlatRange& bucket : buckets_) owned_.push_back(collectives_->owned(bucket));
  if (!overlaps) return;
  if (used.front()->is_asynchronous()) {
    overlap_stream_ = options_.make_stream();
    return;
  }
  thread_ = std::make_unique<JobThread>([this] {
    kernels::set_num_threads(1);               // the others compute
    overlap_stream_ = options_.make_stream();  // here, since a device is chosen thread by thread
  });
  thread_->wait(thread_->add([] {}));
}

GradientSum::~GradientSum() {
  // Only an error leaves jobs behind; their peers may never answer.
  for (const auto& axis : overlap_axes_) axis->stop();
}

bool GradientSum::is_alone() const {
  return std::ranges::all_of(axes_, [](const Communicator* axis) { return axis->size() == 1; });
}

std::vector<FlatRange> GradientSum::updated() const {
  if (options_.shard_optimizer) return owned_;
  return {{0, buckets_.back().end}};
}

GradientSum::Job GradientSum::start(Work work, Stream& stream) {
  if (is_alone()) return {};
  const Timer timer;
  if (overlap_axes_.empty()) {
    work(*collectives_, stream);
    count_exposed(timer.seconds());
    return {};
  }
  Stream::Event ready = stream.record();
  if (thread_ == nullptr) {
    overlap_stream_.wait_for(ready);
    work(*collectives_, overlap_stream_);
    return {0, overlap_stream_.record()};
  }
  // A job waits for its own bucket: jobs before it, which may still run, need not.
  return {thread_->add([this, job = std::move(work),
                        ready = std::make_shared<Stream::Event>(std::move(ready))] {
            const Timer job_timer;
            overlap_stream_.wait_for(*ready);
            job(*collectives_, overlap_stream_);
            total_seconds_ += job_timer.seconds();
          }),
          {}};
}

void GradientSum::count_exposed(double seconds) {
  exposed_seconds_ += seconds;
  total_seconds_ += seconds;
}

void GradientSum::wait(const Job& job, Stream& stream) {
  if (timer_ != nullptr) timer_->mark(stream);
  if (thread_ == nullptr) {
    stream.wait_for(job.done);
  } else {
    const Timer timer;
    thread_->wait(job.number);
    stream.wait_for(overlap_stream_.record());
    exposed_seconds_ += timer.seconds();
  }
  if (timer_ != nullptr) timer_->mark(stream);
}

void GradientSum::reduce_from(std::int64_t begin, Stream& stream) {
  while (num_unreduced_ > 0 && buckets_[num_unreduced_ - 1].begin >= begin) {
    const FlatRange bucket = buckets_[--num_unreduced_];
    sum_ = accumulator_.merge(bucket, stream);
    const TensorView mine = sum_.slice(bucket.begin, bucket.end);
    fault_point("after_backward", {.begin = bucket.begin, .values = [&] {
                                     stream.synchronize();
                                     return mine;
                                   }});
    const std::int64_t first = first_blocks_[num_unreduced_];
    kernels::find_non_finite(mine, bucket.begin,
                             places_.view().slice(first, first + num_blocks(bucket)), stream);
    last_reduction_ = start(
        [this, bucket, sum = sum_](TreeCollectives& collectives, Stream& queue) {
          collectives.reduce_scatter(sum, bucket, queue);
          if (!options_.shard_optimizer) collectives.all_gather(sum, bucket, queue);
        },
        stream);
  }
}

void GradientSum::after_gradients(std::int64_t begin, Stream& stream) {
  // NCCL connects two ranks in their first exchange, where the host waits for the peer: which, in the first step, may still
  // wait for this rank's part of a sequence.
  const bool may_wait = thread_ != nullptr || has_finished_;
  if (is_final_ && !overlap_axes_.empty() && may_wait) reduce_from(begin, stream);
}

TensorView GradientSum::finish(Stream& stream) {
  reduce_from(0, stream);
  wait(last_reduction_, stream);
  is_final_ = false;
  has_finished_ = true;
  num_unreduced_ = buckets_.size();
  return sum_;
}

TensorView GradientSum::first_non_finite(Stream& stream) {
  kernels::smallest(places_, first_place_, stream);
  return first_place_;
}

TensorView GradientSum::sum_of_squares(Stream& stream) {
  kernels::fill(squares_, 0.0, stream);
  for (std::size_t i = 0; i < buckets_.size(); ++i) {
    if (owned_[i].size() > 0) {
      const std::int64_t begin =
          first_blocks_[i] + (owned_[i].begin - buckets_[i].begin) / kernels::kSquaresBlock;
      kernels::block_sums_of_squares(sum_.slice(owned_[i].begin, owned_[i].end),
                                     squares_.view().slice(begin, begin + num_blocks(owned_[i])),
                                     stream);
    }
  }
  const Timer timer;
  // Each block's sum comes from one rank: exact.
  for (Communicator* axis : axes_) {
    if (axis->size() > 1) axis->all_reduce_sum(squares_, stream);
  }
  count_exposed(timer.seconds());
  kernels::add_up(squares_, sum_of_squares_, stream);
  return sum_of_squares_;
}

void GradientSum::gather_parameters(TensorView values, Stream& stream) {
  if (!options_.shard_optimizer) return;
  num_gathered_ = 0;
  gathers_.clear();
  for (const FlatRange& bucket : buckets_) {
    gathers_.push_back(
        start([bucket, values](TreeCollectives& collectives,
                               Stream& queue) { collectives.all_gather(values, bucket, queue); },
              stream));
  }
}

void GradientSum::wait_for_parameters(Stream& stream) {
  before_reading(buckets_.back().end, stream);
}

void GradientSum::before_reading(std::int64_t end, Stream& stream) {
  const std::size_t before = num_gathered_;
  while (num_gathered_ < buckets_.size() && buckets_[num_gathered_].begin < end) ++num_gathered_;
  if (num_gathered_ > before) wait(gathers_[num_gathered_ - 1], stream);
}

GradientSum::Seconds GradientSum::take_seconds() {
  return {total_seconds_.exchange(0), std::exchange(exposed_seconds_, 0)};
}

std::int64_t GradientSum::bytes_sent() const {
  std::int64_t bytes = 0;
  for (const Communicator* axis : axes_) bytes += axis->traffic().total().bytes_sent;
  for (const auto& axis : overlap_axes_) bytes += axis->traffic().total().bytes_sent;
  return bytes;
}

}  // namespace ttt::dist
