#include "launch/axis_ticks.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

namespace ttt::launch {

std::vector<double> nice_ticks(double low, double high, int count, bool is_log) {
  std::vector<double> ticks;
  if (!std::isfinite(low) || !std::isfinite(high) || !(low < high) || (is_log && low <= 0)) {
    return ticks;
  }
  if (is_log && high / low >= 4) {
    const int first = static_cast<int>(std::floor(std::log10(low)));
    const int last = static_cast<int>(std::ceil(std::log10(high)));
    const int stride = std::max(1, (last - first) / std::max(1, count));
    const std::vector<double> parts = high / low < 30     ? std::vector<double>{1, 2, 3, 5}
                                      : high / low < 1000 ? std::vector<double>{1, 3}
                                                          : std::vector<double>{1};
    for (int power = first; power <= last; power += stride) {
      for (const double part : parts) {
        const double tick = part * std::pow(10.0, power);
        if (tick >= low && tick <= high) {
          ticks.push_back(tick);
        }
      }
    }
    return ticks;
  }
  const double rough = (high - low) / std::max(1, count);
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  const double step = rough <= power       ? power
                      : rough <= 2 * power ? 2 * power
                      : rough <= 5 * power ? 5 * power
                                           : 10 * power;
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; ++i) {
    ticks.push_back(i == 0 ? 0.0 : i * step);
  }
  return ticks;
}

std::string format_tick(double value, double spacing) {
  const double size = std::abs(value);
  if (value == 0) {
    return "0";
  }
  constexpr std::array<std::pair<double, const char*>, 4> kUnits = {
      {{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e4, "k"}}};
  for (const auto& [limit, suffix] : kUnits) {
    if (size >= limit) {
      return fmt::format("{:.4g}{}", value / (limit == 1e4 ? 1e3 : limit), suffix);
    }
  }
  if (size < 1e-3) {
    return fmt::format("{:.3g}", value);
  }
  if (spacing <= 0) {
    return fmt::format("{:.4g}", value);
  }
  const int decimals = std::clamp(static_cast<int>(std::ceil(-std::log10(spacing) - 1e-9)), 0, 6);
  return fmt::format("{:.{}f}", value, decimals);
}

}  // namespace ttt::launch
