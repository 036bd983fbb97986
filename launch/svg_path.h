#pragma once
// The "d" attribute of an SVG path through measured points.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ttt::launch {

/// Runs of points in half a pixel's width become their first, lowest, highest and last, which draws
/// the same line in bounded space.
class SvgPath {
 public:
  void add(double x, double y);
  /// The next point starts a new stroke.
  void gap();
  /// The path; add nothing after it.
  std::string finish();

 private:
  void emit(const std::pair<double, double>& point);
  void flush();

  std::string text_;
  std::vector<std::pair<double, double>> points_;  // those of the current column
  std::int64_t column_ = 0;
  int num_in_stroke_ = 0;
};

}  // namespace ttt::launch
