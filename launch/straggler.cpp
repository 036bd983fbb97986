#include "launch/straggler.h"

#include <algorithm>

#include "core/base/error.h"

namespace ttt::launch {
namespace {

// The value at this part of the sorted ones, rounded down: the median of two ranks is the faster one.
double quantile(std::vector<double> values, double part) {
  const auto place =
      values.begin() + static_cast<std::ptrdiff_t>(static_cast<double>(values.size() - 1) * part);
  std::ranges::nth_element(values, place);
  return *place;
}

}  // namespace

StragglerReport::StragglerReport(std::int64_t num_ranks, double threshold)
    : threshold_(threshold),
      seconds_(static_cast<std::size_t>(num_ranks)),
      is_named_(static_cast<std::size_t>(num_ranks), false) {}

std::vector<StragglerReport::Straggler> StragglerReport::add(std::span<const double> seconds) {
  TTT_CHECK(seconds.size() == seconds_.size(), "times of {} ranks, not {}", seconds.size(),
            seconds_.size());
  for (std::size_t rank = 0; rank < seconds.size(); ++rank) {
    seconds_[rank][num_steps_ % kWindow] = seconds[rank];
  }
  if (++num_steps_ < kWindow) return {};
  std::vector<double> own;
  for (const auto& window : seconds_) own.push_back(quantile({window.begin(), window.end()}, 0.25));
  const double of_all = quantile(own, 0.5);
  std::vector<Straggler> stragglers;
  for (std::size_t rank = 0; rank < own.size(); ++rank) {
    if (!(own[rank] > 0)) continue;
    const double score = of_all / own[rank];
    if (score < threshold_ && !is_named_[rank]) {
      is_named_[rank] = true;
      stragglers.push_back({static_cast<std::int64_t>(rank), score});
    }
    // Half-way back to the others, so that a rank at the threshold is not named again and again.
    if (score > (1 + threshold_) / 2) is_named_[rank] = false;
  }
  return stragglers;
}

}  // namespace ttt::launch
