#include "launch/batch_prefetcher.h"

#include <algorithm>
#include <utility>

#include "core/base/memory.h"

namespace ttt::launch {
namespace {

constexpr memory::Purpose kBatches{"batches", "lower train.micro_batch_size"};

}  // namespace

BatchPrefetcher::BatchPrefetcher(const BatchReader& reader, std::int64_t rows,
                                 std::int64_t global_rows, std::int64_t count,
                                 std::function<std::int64_t(std::int64_t)> position_of)
    : reader_(reader),
      global_rows_(global_rows),
      count_(count),
      position_of_(std::move(position_of)) {
  const memory::Scope scope(kBatches, memory::Place::kPinned);
  for (std::int64_t i = 0; i < std::min(kDepth, count); ++i) {
    slot_of(i).buffers = reader.make_buffers(rows);
  }
  thread_ = std::thread([this] { read_all(); });
}

BatchPrefetcher::~BatchPrefetcher() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void BatchPrefetcher::read_all() {
  try {
    for (std::int64_t i = 0; i < count_; ++i) {
      Slot& slot = slot_of(i);
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return is_ending_ || !slot.is_full; });
        if (is_ending_) return;
      }
      slot.used.wait();
      reader_.read(position_of_(i), global_rows_, slot.buffers);
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        slot.is_full = true;
      }
      changed_.notify_all();
    }
  } catch (...) {
    const std::lock_guard<std::mutex> lock(mutex_);
    error_ = std::current_exception();
    changed_.notify_all();
  }
}

BatchReader::Buffers BatchPrefetcher::next() {
  TTT_CHECK(taken_ < count_, "micro-batch {} of {}", taken_, count_);
  Slot& slot = slot_of(taken_);
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return error_ != nullptr || slot.is_full; });
  if (!slot.is_full) std::rethrow_exception(error_);
  return slot.buffers;
}

void BatchPrefetcher::give_back(Stream::Event used) {
  Slot& slot = slot_of(taken_++);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    slot.used = std::move(used);
    slot.is_full = false;
  }
  changed_.notify_all();
}

}  // namespace ttt::launch
