#include "launch/smoothing.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

namespace ttt::launch {

Series smoothed(const Series& raw) {
  Series smooth = raw;
  const auto count = static_cast<std::int64_t>(raw.y.size());
  std::vector<double> sums(raw.y.size() + 1, 0.0);
  std::vector<std::int64_t> counts(raw.y.size() + 1, 0);
  for (std::size_t i = 0; i < raw.y.size(); ++i) {
    const bool counts_here = std::isfinite(raw.y[i]);
    sums[i + 1] = sums[i] + (counts_here ? raw.y[i] : 0.0);
    counts[i + 1] = counts[i] + (counts_here ? 1 : 0);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    // The window grows with the distance from the start, where curves are steep.
    const std::int64_t half = std::min(count / 40, i / 4);
    const auto begin = static_cast<std::size_t>(i - half);
    const auto end = static_cast<std::size_t>(std::min(i + half + 1, count));
    if (std::isfinite(raw.y[static_cast<std::size_t>(i)])) {
      smooth.y[static_cast<std::size_t>(i)] =
          (sums[end] - sums[begin]) / static_cast<double>(counts[end] - counts[begin]);
    }
  }
  return smooth;
}

void add_curve(Plot& plot, Series series, const std::string& name) {
  constexpr std::size_t kFewPoints = 60;
  const int color = static_cast<int>(std::count_if(
      plot.series.begin(), plot.series.end(), [](const Series& item) { return !item.is_faint; }));
  series.color = color;
  if (series.x.size() > kFewPoints) {
    Series smooth = smoothed(series);
    smooth.name = name.empty() ? "smoothed" : name;
    series.name = name.empty() ? "each step" : "";
    series.is_faint = true;
    plot.series.push_back(std::move(series));
    plot.series.push_back(std::move(smooth));
  } else {
    series.name = name;
    plot.series.push_back(std::move(series));
  }
}

}  // namespace ttt::launch
