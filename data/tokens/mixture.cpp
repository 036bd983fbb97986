#include "data/tokens/mixture.h"

#include <cmath>

#include "core/base/error.h"

namespace ttt::data {
namespace {

constexpr std::uint64_t kOne = std::uint64_t{1} << 32U;

// floor(count share / 2^32 + 1/2), exactly: no product passes 2^64 for count < 2^63 and share <= 2^32.
std::int64_t taken(std::int64_t count, std::uint64_t share) {
  const auto number = static_cast<std::uint64_t>(count);
  const std::uint64_t high = (number >> 32U) * share;
  const std::uint64_t low = ((number & (kOne - 1)) * share + kOne / 2) >> 32U;
  return static_cast<std::int64_t>(high + low);
}

}  // namespace

Mixture::Mixture(std::span<const double> weights) {
  TTT_CHECK(!weights.empty(), "a mixture of nothing");
  shares_.resize(weights.size());
  double left = 0;  // the weight of this source and those behind it
  for (std::size_t s = weights.size(); s-- > 0;) {
    left += weights[s];
    if (!(weights[s] > 0) || !std::isfinite(left)) {
      fail(ExitCode::kUsage, "the weight of source {} is {}; it must be a number > 0", s,
           weights[s]);
    }
    shares_[s] =
        static_cast<std::uint64_t>(std::llround(weights[s] / left * static_cast<double>(kOne)));
    if (shares_[s] == 0 || (shares_[s] == kOne && s + 1 < weights.size())) {
      fail(ExitCode::kUsage,
           "source {} has the weight {} of {} with those after it: too uneven to be kept", s,
           weights[s], left);
    }
  }
}

Mixture::Place Mixture::place_of(std::int64_t sample) const {
  TTT_CHECK(sample >= 0, "sample {}", sample);
  std::int64_t left = sample;
  for (std::size_t s = 0;; ++s) {
    const std::int64_t before = taken(left, shares_[s]);
    if (taken(left + 1, shares_[s]) > before) return {s, before};
    left -= before;
  }
}

std::vector<std::int64_t> Mixture::counts(std::int64_t samples) const {
  std::vector<std::int64_t> counts;
  std::int64_t left = samples;
  for (const std::uint64_t share : shares_) {
    counts.push_back(taken(left, share));
    left -= counts.back();
  }
  return counts;
}

}  // namespace ttt::data
