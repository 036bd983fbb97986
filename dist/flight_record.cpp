#include "dist/flight_record.h"

#include <fmt/format.h>

#include <algorithm>

namespace ttt::dist {

const char* name_of(Phase phase) {
  constexpr std::array kNames = {"start", "step", "evaluation", "checkpoint"};
  return kNames.at(static_cast<std::size_t>(phase));
}

const char* name_of(Operation operation) {
  constexpr std::array kNames = {
      "none", "all_reduce_sum", "reduce_scatter_sum", "all_gather", "all_to_all", "send",
      "post", "recv",           "exchange",           "broadcast",  "barrier",    "gather_strings"};
  return kNames.at(static_cast<std::size_t>(operation));
}

void FlightRecord::enter(Phase phase) {
  const std::lock_guard lock(mutex_);
  phase_ = phase;
  last_progress_ = clock_.seconds();
}

void FlightRecord::mark_progress() {
  const std::lock_guard lock(mutex_);
  last_progress_ = clock_.seconds();
}

std::int64_t FlightRecord::begin(Operation operation, std::int64_t bytes, int peer) {
  const std::lock_guard lock(mutex_);
  last_progress_ = clock_.seconds();
  const std::int64_t number = num_operations_++;
  entries_.at(static_cast<std::size_t>(number % kNumEntries)) = {number, operation,      bytes,
                                                                 peer,   last_progress_, -1};
  return number;
}

void FlightRecord::end(std::int64_t number) {
  const std::lock_guard lock(mutex_);
  last_progress_ = clock_.seconds();
  Entry& entry = entries_.at(static_cast<std::size_t>(number % kNumEntries));
  if (entry.number == number) entry.end_seconds = last_progress_;
}

FlightRecord::Activity FlightRecord::activity() const {
  const std::lock_guard lock(mutex_);
  Activity activity{phase_, Operation::kNone, num_operations_, clock_.seconds() - last_progress_};
  for (std::int64_t number = std::max<std::int64_t>(0, num_operations_ - kNumEntries);
       number < num_operations_; ++number) {
    const Entry* found = entry(number);
    if (found->end_seconds < 0) {
      activity.operation = found->operation;
      break;
    }
  }
  return activity;
}

std::string FlightRecord::text() const {
  const std::lock_guard lock(mutex_);
  const double now = clock_.seconds();
  std::string lines = fmt::format("phase={} seconds_since_progress={:.3f} operations={}\n",
                                  name_of(phase_), now - last_progress_, num_operations_);
  for (std::int64_t number = std::max<std::int64_t>(0, num_operations_ - kNumEntries);
       number < num_operations_; ++number) {
    const Entry& e = *entry(number);
    const bool ended = e.end_seconds >= 0;
    lines += fmt::format("number={} operation={} bytes={} peer={} seconds_ago={:.3f} {}={:.6f}\n",
                         e.number, name_of(e.operation), e.bytes, e.peer, now - e.begin_seconds,
                         ended ? "took" : "waits_since",
                         (ended ? e.end_seconds : now) - e.begin_seconds);
  }
  return lines;
}

const FlightRecord::Entry* FlightRecord::entry(std::int64_t number) const {
  return &entries_.at(static_cast<std::size_t>(number % kNumEntries));
}

}  // namespace ttt::dist
