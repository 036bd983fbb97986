#pragma once
// What a run does when its numbers go wrong: which steps make no update, and when enough is enough. Pure: what it decides is a
// function of the configuration and of the steps it was shown, so that all ranks and all replays decide alike.
//
// A spike is a loss or gradient norm x > median + deviations * max(1.4826 MAD, median / 20) of the window, which holds
// the last updates. 1.4826 MAD is the standard deviation of normal numbers; the other term keeps a window without
// spread from calling everything a spike. The limits of step n come from updates up to step n - 2, on every device: a CUDA
// device is given step n before the host has read step n - 1.
//
// Errors: kCorruptInput for a saved state that no guard can have had.
// Source: outliers of loss and norm as llm.c's outlier_detector.h, with median and MAD for mean and deviation, which
//   spikes themselves would move; skipping data after a spike: arXiv:2204.02311 section 5.1 (PaLM).

#include <cstdint>
#include <span>
#include <string>

#include "configs/manifest.pb.h"
#include "kernels/adamw.h"

namespace ttt::launch {

class Guard {
 public:
  explicit Guard(const config::GuardConfig& config) : config_(config) {}

  /// Goes on from a checkpoint's.
  void restore(const config::GuardState& state) { state_ = state; }
  [[nodiscard]] const config::GuardState& state() const { return state_; }

  /// What step `step` (from 1) may not exceed.
  [[nodiscard]] kernels::UpdateLimits limits(std::int64_t step) const;

  enum class Verdict : std::uint8_t { kUpdated, kNotFinite, kSpike };
  /// Steps in their order. `is_updated`: whether all ranks made the update.
  Verdict observe(std::int64_t step, double loss, double grad_norm, bool is_updated);
  /// More skips in a row than allowed.
  [[nodiscard]] bool is_exhausted() const {
    return state_.consecutive_skips() > config_.max_consecutive_skips();
  }

  [[nodiscard]] bool rolls_back() const {
    return config_.spike_policy() == config::GuardConfig::ROLLBACK;
  }
  [[nodiscard]] bool may_roll_back() const { return state_.rollbacks() < config_.max_rollbacks(); }
  /// After a spike at step `from`: goes on from the checkpoint's `saved` state of step `to`, with data after the spike's.
  void roll_back(std::int64_t from, const config::GuardState& saved, std::int64_t to);

 private:
  config::GuardConfig config_;
  config::GuardState state_;
};

/// Throws kCorruptInput unless a guard can have been in this state after `step` steps. `source` names it in the message.
void expect_valid(const config::GuardState& state, std::int64_t step, const std::string& source);

/// median + deviations * spread, as above; `values` are not empty.
double spike_limit(std::span<const double> values, double deviations);

}  // namespace ttt::launch
