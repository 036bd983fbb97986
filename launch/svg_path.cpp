#include "launch/svg_path.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace ttt::launch {

void SvgPath::add(double x, double y) {
  const auto column = static_cast<std::int64_t>(std::floor(x * 2));
  if (column != column_) {
    flush();
  }
  column_ = column;
  points_.emplace_back(x, y);
}

void SvgPath::gap() {
  flush();
  if (num_in_stroke_ == 1) {
    text_ += "h0";  // a lone point: a dot through the round line cap
  }
  num_in_stroke_ = 0;
}

std::string SvgPath::finish() {
  gap();
  return std::move(text_);
}

void SvgPath::emit(const std::pair<double, double>& point) {
  text_ +=
      fmt::format("{}{:.1f} {:.1f}", num_in_stroke_ == 0 ? "M" : "L", point.first, point.second);
  ++num_in_stroke_;
}

void SvgPath::flush() {
  if (points_.size() <= 4) {
    std::for_each(points_.begin(), points_.end(), [&](const auto& point) { emit(point); });
  } else {
    const auto by_y = [](const auto& a, const auto& b) { return a.second < b.second; };
    const auto [low, high] = std::minmax_element(points_.begin(), points_.end(), by_y);
    emit(points_.front());
    emit(*std::min(low, high));
    emit(*std::max(low, high));
    emit(points_.back());
  }
  points_.clear();
}

}  // namespace ttt::launch
