#pragma once
// A run's micro-batches, read by a thread of its own while those before compute.

#include <array>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "core/base/stream.h"
#include "launch/batch_reader.h"

namespace ttt::launch {

class BatchPrefetcher {
 public:
  /// Micro-batches that are read ahead. Small models need some milliseconds for one, and on a busy machine the thread can
  /// be without a processor for tens; a token takes 32 bytes.
  static constexpr std::int64_t kDepth = 16;

  /// Micro-batch i in [0, count) is samples [position_of(i), position_of(i) + rows) of global batches of `global_rows`.
  /// `reader` must outlive this; what it reads does not depend on when.
  BatchPrefetcher(const BatchReader& reader, std::int64_t rows, std::int64_t global_rows,
                  std::int64_t count, std::function<std::int64_t(std::int64_t)> position_of);
  BatchPrefetcher(const BatchPrefetcher&) = delete;
  BatchPrefetcher& operator=(const BatchPrefetcher&) = delete;
  ~BatchPrefetcher();

  /// The next micro-batch, in pinned memory; waits for it and throws what reading it threw. To be given back before the
  /// next call.
  BatchReader::Buffers next();
  /// What `next` gave may be overwritten once `used` is reached.
  void give_back(Stream::Event used);

 private:
  struct Slot {
    BatchReader::Buffers buffers;
    Stream::Event used;
    bool is_full = false;
  };

  void read_all();
  Slot& slot_of(std::int64_t i) { return slots_[static_cast<std::size_t>(i % kDepth)]; }

  const BatchReader& reader_;
  std::int64_t global_rows_;
  std::int64_t count_;
  std::function<std::int64_t(std::int64_t)> position_of_;
  std::array<Slot, kDepth> slots_;
  std::int64_t taken_ = 0;  // by the caller

  std::mutex mutex_;  // guards is_full, is_ending_ and error_
  std::condition_variable changed_;
  bool is_ending_ = false;
  std::exception_ptr error_;
  std::thread thread_;
};

}  // namespace ttt::launch
