#pragma once
// Line plots as static SVG: no scripts, fonts or other resources, readable on white and by
// colour-blind people (Okabe and Ito's palette; a dark-to-light scale for ordered series).

#include <string>
#include <vector>

namespace ttt::launch {

struct Series {
  std::string name;       // in the legend; empty: not listed
  std::vector<double> x;  // ascending
  std::vector<double> y;  // as many; a point that is not finite is a gap
  bool is_faint = false;  // thin and pale, behind the others: raw data under a smoothed curve
  int color = -1;         // place in the palette; -1: the place among the series
};

struct Plot {
  std::string title;
  std::string x_label;
  std::string y_label;
  std::vector<Series> series;
  bool log_x = false;  // points at or below zero are gaps
  bool log_y = false;
  bool is_ordered = false;  // colours run from dark to light: layers, sizes
  int width = 560;
  int height = 320;
};

/// One <svg> element. A plot without a finite point says "no data".
std::string render_svg(const Plot& plot);

/// Escapes text for HTML and XML, in content and in quoted attributes.
std::string escape_markup(const std::string& text);

}  // namespace ttt::launch
