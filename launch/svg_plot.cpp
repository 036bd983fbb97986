#include "launch/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/base/error.h"
#include "launch/axis_ticks.h"
#include "launch/svg_path.h"

namespace ttt::launch {
namespace {

// Okabe and Ito without the yellow, which vanishes on white.
constexpr std::array kPalette = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                 "#e69f00", "#56b4e9", "#333333"};

struct Axis {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  bool is_log = false;
  double pixel_low = 0;
  double pixel_high = 0;

  [[nodiscard]] double scaled(double value) const { return is_log ? std::log10(value) : value; }
  [[nodiscard]] bool shows(double value) const {
    return std::isfinite(value) && (!is_log || value > 0);
  }
  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  /// A little air, and a span even for a single value.
  void widen(double share) {
    if (low == high) {
      const double half = low == 0 ? 1 : std::abs(low) * 0.1;
      low = is_log ? low / 2 : low - half;
      high = is_log ? high * 2 : high + half;
    } else if (is_log) {
      const double factor = std::pow(high / low, share);
      low /= factor;
      high *= factor;
    } else {
      const double margin = (high - low) * share;
      low -= low >= 0 && low < margin ? low : margin;  // a quantity that is never negative
      high += margin;
    }
  }
  [[nodiscard]] double pixel(double value) const {
    const double place = (scaled(value) - scaled(low)) / (scaled(high) - scaled(low));
    return pixel_low + place * (pixel_high - pixel_low);
  }
};

std::string mix(std::array<int, 3> a, std::array<int, 3> b, double t) {
  std::string color = "#";
  for (std::size_t i = 0; i < 3; ++i) {
    color += fmt::format("{:02x}", static_cast<int>(std::lround(a[i] + t * (b[i] - a[i]))));
  }
  return color;
}

std::string color_of(const Plot& plot, std::size_t index) {
  const int place =
      plot.series[index].color < 0 ? static_cast<int>(index) : plot.series[index].color;
  if (plot.is_ordered) {
    const double t = plot.series.size() < 2
                         ? 0.0
                         : std::min(1.0, place / static_cast<double>(plot.series.size() - 1));
    // Dark blue over teal to a green that still stands on white: lightness orders them.
    return t < 0.5 ? mix({33, 29, 98}, {0, 128, 140}, 2 * t)
                   : mix({0, 128, 140}, {142, 190, 60}, 2 * t - 1);
  }
  return kPalette[static_cast<std::size_t>(place) % kPalette.size()];
}

/// Series past the palette's end are told apart by dashes.
const char* dash_of(const Plot& plot, std::size_t index) {
  constexpr std::array kDashes = {"", " stroke-dasharray=\"7 3\"", " stroke-dasharray=\"2 3\""};
  const int place =
      plot.series[index].color < 0 ? static_cast<int>(index) : plot.series[index].color;
  return plot.is_ordered
             ? ""
             : kDashes[(static_cast<std::size_t>(place) / kPalette.size()) % kDashes.size()];
}

/// Few points are marked, so that a reader sees where they are.
constexpr std::size_t kMostMarkers = 30;

std::string draw_series(const Plot& plot, std::size_t index, const Axis& x, const Axis& y) {
  const Series& series = plot.series[index];
  SvgPath path;
  std::string markers;
  const bool has_markers = series.x.size() <= kMostMarkers;
  for (std::size_t i = 0; i < series.x.size(); ++i) {
    if (x.shows(series.x[i]) && y.shows(series.y[i])) {
      path.add(x.pixel(series.x[i]), y.pixel(series.y[i]));
      if (has_markers) {
        markers += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n",
                               x.pixel(series.x[i]), y.pixel(series.y[i]), color_of(plot, index));
      }
    } else {
      path.gap();
    }
  }
  return fmt::format(
             "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"{}{} "
             "stroke-linejoin=\"round\" "
             "stroke-linecap=\"round\"/>\n",
             path.finish(), color_of(plot, index), series.is_faint ? 1 : 2,
             series.is_faint ? " stroke-opacity=\"0.35\"" : "", dash_of(plot, index)) +
         markers;
}

std::string draw_axes(const Plot& plot, const Axis& x, const Axis& y) {
  std::string svg;
  const auto spacing = [](const std::vector<double>& ticks) {
    return ticks.size() < 2 ? 0.0 : ticks[1] - ticks[0];
  };
  const auto y_ticks = nice_ticks(y.low, y.high, 5, y.is_log);
  for (const double tick : y_ticks) {
    const double at = y.pixel(tick);
    svg += fmt::format(
        "<path d=\"M{:.1f} {:.1f}H{:.1f}\" stroke=\"#e4e4e4\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n",
        x.pixel_low, at, x.pixel_high, x.pixel_low - 7, at + 4,
        format_tick(tick, y.is_log ? 0 : spacing(y_ticks)));
  }
  const auto x_ticks = nice_ticks(x.low, x.high, plot.width / 90, x.is_log);
  for (const double tick : x_ticks) {
    const double at = x.pixel(tick);
    svg += fmt::format(
        "<path d=\"M{0:.1f} {1:.1f}v5\" stroke=\"#888\"/>"
        "<text x=\"{0:.1f}\" y=\"{2:.1f}\" text-anchor=\"middle\">{3}</text>\n",
        at, y.pixel_low, y.pixel_low + 18, format_tick(tick, x.is_log ? 0 : spacing(x_ticks)));
  }
  svg += fmt::format("<path d=\"M{:.1f} {:.1f}H{:.1f}\" stroke=\"#888\"/>\n", x.pixel_low,
                     y.pixel_low, x.pixel_high);
  svg +=
      fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                  (x.pixel_low + x.pixel_high) / 2, plot.height - 8, escape_markup(plot.x_label));
  const double middle = (y.pixel_low + y.pixel_high) / 2;
  svg += fmt::format(
      "<text transform=\"translate(15 {:.1f}) rotate(-90)\" "
      "text-anchor=\"middle\">{}</text>\n",
      middle, escape_markup(plot.y_label));
  return svg;
}

constexpr int kLegendRow = 18;

/// Entries left to right under the title, in rows; returns the number of rows.
int draw_legend(const Plot& plot, std::string& svg) {
  constexpr double kLeft = 62;
  double x = kLeft;
  int row = 0;
  bool is_empty = true;
  for (std::size_t i = 0; i < plot.series.size(); ++i) {
    const std::string& name = plot.series[i].name;
    if (name.empty()) {
      continue;
    }
    const double entry = 44 + 6.4 * static_cast<double>(name.size());  // SVG cannot measure text
    if (x > kLeft && x + entry > plot.width) {
      x = kLeft;
      ++row;
    }
    const int y = 41 + row * kLegendRow;
    svg += fmt::format(
        "<path d=\"M{:.1f} {}h20\" stroke=\"{}\" stroke-width=\"{}\"{}{}/>"
        "<text x=\"{:.1f}\" y=\"{}\">{}</text>\n",
        x, y, color_of(plot, i), plot.series[i].is_faint ? 1.5 : 2.5,
        plot.series[i].is_faint ? " stroke-opacity=\"0.5\"" : "", dash_of(plot, i), x + 26, y + 4,
        escape_markup(name));
    x += entry;
    is_empty = false;
  }
  return is_empty ? 0 : row + 1;
}

}  // namespace

std::string escape_markup(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        // Control characters are not allowed in XML at all.
        escaped += static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t' ? ' ' : c;
    }
  }
  return escaped;
}

std::string render_svg(const Plot& plot) {
  Axis x;
  Axis y;
  x.is_log = plot.log_x;
  y.is_log = plot.log_y;
  for (const Series& series : plot.series) {
    TTT_CHECK(series.x.size() == series.y.size(), "series '{}' has {} x and {} y", series.name,
              series.x.size(), series.y.size());
    for (std::size_t i = 0; i < series.x.size(); ++i) {
      if (x.shows(series.x[i]) && y.shows(series.y[i])) {
        x.include(series.x[i]);
        y.include(series.y[i]);
      }
    }
  }
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
      "height=\"{1}\" role=\"img\" aria-label=\"{2}\" font-family=\"system-ui, Helvetica, Arial, "
      "sans-serif\" font-size=\"12\" fill=\"#444\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n"
      "<text x=\"14\" y=\"22\" font-size=\"14\" font-weight=\"600\" fill=\"#111\">{2}</text>\n",
      plot.width, plot.height, escape_markup(plot.title));
  const int legend_rows = draw_legend(plot, svg);
  if (x.low > x.high) {
    return svg +
           fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">no data</text>\n</svg>\n",
                       plot.width / 2, plot.height / 2);
  }
  if (x.low == x.high) {
    x.widen(0);
  }
  y.widen(0.05);
  x.pixel_low = 62;
  x.pixel_high = plot.width - 18;
  y.pixel_low = plot.height - 46;
  y.pixel_high = 38 + legend_rows * kLegendRow;
  svg += draw_axes(plot, x, y);
  for (const bool is_faint : {true, false}) {
    for (std::size_t i = 0; i < plot.series.size(); ++i) {
      if (plot.series[i].is_faint == is_faint) {
        svg += draw_series(plot, i, x, y);
      }
    }
  }
  return svg + "</svg>\n";
}

}  // namespace ttt::launch
