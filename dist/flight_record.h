#pragma once
// What a rank does now and what it communicated last: what the watchdog judges by, and what is left to
// read when a job was ended for it. Thread safe.

#include <array>
#include <cstdint>
#include <mutex>
#include <string>

#include "core/base/timer.h"

namespace ttt::dist {

/// What a run is busy with. Every rank goes through the same ones in the same order.
enum class Phase : std::int32_t { kStart, kStep, kEvaluation, kCheckpoint };
constexpr int kNumPhases = 4;

enum class Operation : std::int32_t {
  kNone,
  kAllReduceSum,
  kReduceScatterSum,
  kAllGather,
  kAllToAll,
  kSend,
  kPost,
  kRecv,
  kExchange,
  kBroadcast,
  kBarrier,
  kGatherStrings,
};

const char* name_of(Phase phase);
const char* name_of(Operation operation);

class FlightRecord {
 public:
  /// Now. `stuck_seconds`: since the last phase, operation or mark of progress began or ended.
  struct Activity {
    Phase phase = Phase::kStart;
    Operation operation = Operation::kNone;  // the oldest one that has not returned
    std::int64_t num_operations = 0;         // begun
    double stuck_seconds = 0;
  };

  void enter(Phase phase);
  /// The rank lives and gets on: a micro-batch is done, or the process was suspended and is back.
  void mark_progress();
  /// Returns the operation's number, which `end` takes.
  std::int64_t begin(Operation operation, std::int64_t bytes, int peer);
  void end(std::int64_t number);

  [[nodiscard]] Activity activity() const;
  /// A line for each of the last operations, oldest first.
  [[nodiscard]] std::string text() const;

 private:
  struct Entry {
    std::int64_t number = -1;
    Operation operation = Operation::kNone;
    std::int64_t bytes = 0;
    int peer = -1;
    double begin_seconds = 0;
    double end_seconds = -1;  // not returned
  };
  static constexpr std::int64_t kNumEntries = 256;

  [[nodiscard]] const Entry* entry(std::int64_t number) const;

  mutable std::mutex mutex_;
  Timer clock_;
  Phase phase_ = Phase::kStart;
  double last_progress_ = 0;
  std::int64_t num_operations_ = 0;
  std::array<Entry, kNumEntries> entries_;
};

/// One operation, from here to the end of the block. `record` may be null.
class RecordedOperation {
 public:
  RecordedOperation(FlightRecord* record, Operation operation, std::int64_t bytes, int peer = -1)
      : record_(record), number_(record ? record->begin(operation, bytes, peer) : 0) {}
  RecordedOperation(const RecordedOperation&) = delete;
  RecordedOperation& operator=(const RecordedOperation&) = delete;
  ~RecordedOperation() {
    if (record_) record_->end(number_);
  }

 private:
  FlightRecord* record_;
  std::int64_t number_;
};

/// What a rank is busy with, from here to the end of the block.
class PhaseScope {
 public:
  PhaseScope(FlightRecord& record, Phase phase)
      : record_(record), before_(record.activity().phase) {
    record_.enter(phase);
  }
  PhaseScope(const PhaseScope&) = delete;
  PhaseScope& operator=(const PhaseScope&) = delete;
  ~PhaseScope() { record_.enter(before_); }

 private:
  FlightRecord& record_;
  Phase before_;
};

}  // namespace ttt::dist
