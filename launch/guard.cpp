#include "launch/guard.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/error.h"

namespace ttt::launch {
namespace {

// Of an even number the lower one of the two in the middle.
double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

}  // namespace

double spike_limit(std::span<const double> values, double deviations) {
  TTT_CHECK(!values.empty(), "an empty window");
  const double middle = median({values.begin(), values.end()});
  std::vector<double> distances;
  for (const double value : values) distances.push_back(std::abs(value - middle));
  return middle + deviations * std::max(1.4826 * median(distances), std::abs(middle) / 20);
}

void expect_valid(const config::GuardState& state, std::int64_t step, const std::string& source) {
  const auto refuse = [&](const char* reason) {
    fail(ExitCode::kCorruptInput, "{}: the guard's state has {}", source, reason);
  };
  for (const std::int64_t count : {state.skipped_steps(), state.consecutive_skips(),
                                   state.rollbacks(), state.passed_over_steps()}) {
    if (count < 0) refuse("a negative count");
  }
  if (state.skipped_steps() > step || state.consecutive_skips() > state.skipped_steps()) {
    refuse("more skipped steps than steps");
  }
  std::int64_t last = 0;
  for (const config::GuardState::Update& update : state.window()) {
    if (!std::isfinite(update.loss()) || !std::isfinite(update.grad_norm())) {
      refuse("numbers in its window that are not finite");
    }
    if (update.step() <= last || update.step() > step) refuse("a window out of order");
    last = update.step();
  }
}

kernels::UpdateLimits Guard::limits(std::int64_t step) const {
  if (config_.spike_policy() == config::GuardConfig::NONE) return {};
  std::vector<double> losses;
  std::vector<double> norms;
  for (const config::GuardState::Update& update : state_.window()) {
    if (update.step() > step - 2) break;
    losses.push_back(update.loss());
    norms.push_back(update.grad_norm());
  }
  const auto size = static_cast<std::size_t>(config_.spike_window());
  if (losses.size() < size) return {};
  const auto limit = [&](const std::vector<double>& values) {
    return spike_limit(std::span(values).last(size), config_.spike_deviations());
  };
  return {.norm = limit(norms), .loss = limit(losses)};
}

Guard::Verdict Guard::observe(std::int64_t step, double loss, double grad_norm, bool is_updated) {
  if (!is_updated) {
    const bool is_finite = std::isfinite(loss) && std::isfinite(grad_norm);
    if (is_finite && rolls_back()) return Verdict::kSpike;  // the step will never have been
    state_.set_skipped_steps(state_.skipped_steps() + 1);
    state_.set_consecutive_skips(state_.consecutive_skips() + 1);
    return is_finite ? Verdict::kSpike : Verdict::kNotFinite;
  }
  state_.set_consecutive_skips(0);
  config::GuardState::Update& update = *state_.add_window();
  update.set_step(step);
  update.set_loss(loss);
  update.set_grad_norm(grad_norm);
  // One more than the window: the last step does not count for the next one's limits.
  const auto excess = state_.window_size() - static_cast<int>(config_.spike_window()) - 1;
  if (excess > 0) state_.mutable_window()->DeleteSubrange(0, excess);
  return Verdict::kUpdated;
}

void Guard::roll_back(std::int64_t from, const config::GuardState& saved, std::int64_t to) {
  const std::int64_t rollbacks = state_.rollbacks() + 1;
  const std::int64_t passed_over = state_.passed_over_steps() + from - to;
  state_ = saved;
  state_.set_rollbacks(rollbacks);
  state_.set_passed_over_steps(passed_over);
}

}  // namespace ttt::launch
