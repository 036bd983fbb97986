#include "launch/straggler.h"

#include <algorithm>

#include "core/base/error.h"

namespace ttt::launch {
namespace {

// Of an even number the lower one of the two in the middle: of two ranks the faster one.
double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
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
  for (const auto& window : seconds_) own.push_back(median({window.begin(), window.end()}));
  const double of_all = median(own);
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
