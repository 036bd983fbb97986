#include "launch/svg_plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <regex>

#include "core/base/error.h"
#include "launch/axis_ticks.h"
#include "launch/smoothing.h"

namespace ttt::launch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Plot plot_of(std::vector<double> x, std::vector<double> y) {
  Plot plot;
  plot.title = "Loss";
  plot.x_label = "step";
  plot.y_label = "nats";
  Series series;
  series.name = "curve";
  series.x = std::move(x);
  series.y = std::move(y);
  plot.series.push_back(std::move(series));
  return plot;
}

/// The path of the only series: the one without a fill.
std::string path_of(const std::string& svg) {
  std::smatch match;
  const std::regex pattern("<path d=\"([^\"]*)\" fill=\"none\"");
  return std::regex_search(svg, match, pattern) ? match[1].str() : "no path";
}

std::int64_t occurrences(const std::string& text, char c) {
  return std::count(text.begin(), text.end(), c);
}

TEST(SvgPlot, IsSelfContainedAndComplete) {
  const std::string svg = render_svg(plot_of({1, 2, 3}, {4, 5, 4}));
  EXPECT_THAT(svg, testing::StartsWith("<svg xmlns=\"http://www.w3.org/2000/svg\""));
  EXPECT_THAT(svg, testing::EndsWith("</svg>\n"));
  for (const char* text : {">Loss<", ">step<", ">nats<", ">curve<"}) {
    EXPECT_THAT(svg, HasSubstr(text));
  }
  for (const char* text : {"href", "url(", "<script", "@import"}) {
    EXPECT_THAT(svg, Not(HasSubstr(text)));
  }
}

TEST(SvgPlot, NonFinitePointsAreGaps) {
  const std::string path = path_of(render_svg(plot_of({1, 2, 3, 4, 5}, {1, 2, kNan, 2, 1})));
  EXPECT_EQ(occurrences(path, 'M'), 2);
  EXPECT_EQ(occurrences(path, 'L'), 2);
  EXPECT_THAT(path, Not(HasSubstr("nan")));
}

TEST(SvgPlot, LonePointsAreDots) {
  EXPECT_THAT(path_of(render_svg(plot_of({1}, {1}))), testing::EndsWith("h0"));
}

TEST(SvgPlot, LogAxesSkipWhatHasNoLogarithm) {
  Plot plot = plot_of({0, 1, 10, 100}, {1, -1, 10, 100});
  plot.log_x = true;
  plot.log_y = true;
  const std::string path = path_of(render_svg(plot));
  EXPECT_EQ(occurrences(path, 'M'), 1);
  EXPECT_EQ(occurrences(path, 'L'), 1);
}

TEST(SvgPlot, NothingToShowSaysSo) {
  EXPECT_THAT(render_svg(plot_of({}, {})), HasSubstr("no data"));
  EXPECT_THAT(render_svg(plot_of({1}, {kNan})), HasSubstr("no data"));
  EXPECT_THAT(render_svg(Plot{}), HasSubstr("no data"));
}

TEST(SvgPlot, ManyPointsTakeBoundedSpace) {
  std::vector<double> x(1000000);
  std::vector<double> y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<double>(i);
    y[i] = std::sin(static_cast<double>(i));
  }
  y[123456] = 50;  // a spike must survive the thinning
  const std::string svg = render_svg(plot_of(x, y));
  EXPECT_LT(svg.size(), 100000U);
  EXPECT_THAT(svg, HasSubstr(">40<"));
}

TEST(SvgPlot, TextIsEscaped) {
  Plot plot = plot_of({1, 2}, {1, 2});
  plot.title = "<b> & \"q\" 'a'\x01";
  EXPECT_THAT(render_svg(plot), HasSubstr("&lt;b&gt; &amp; &quot;q&quot; &#39;a&#39; <"));
}

TEST(SvgPlot, SeriesHaveColoursOfTheirOwn) {
  Plot plot = plot_of({1, 2}, {1, 2});
  plot.series.resize(14, plot.series[0]);
  for (const bool is_ordered : {false, true}) {
    plot.is_ordered = is_ordered;
    const std::string svg = render_svg(plot);
    const std::regex pattern(
        "fill=\"none\" (stroke=\"#[0-9a-f]{6}\" stroke-width=\"2\"( "
        "stroke-dasharray=\"[0-9 ]*\")?)");
    std::vector<std::string> strokes;
    for (std::sregex_iterator i(svg.begin(), svg.end(), pattern), end; i != end; ++i) {
      strokes.push_back((*i)[1]);
    }
    ASSERT_EQ(strokes.size(), 14U);
    std::sort(strokes.begin(), strokes.end());
    EXPECT_EQ(std::unique(strokes.begin(), strokes.end()), strokes.end());
  }
}

TEST(SvgPlot, UnequalLengthsAreAnError) {
  try {
    (void)render_svg(plot_of({1, 2}, {1}));
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("series 'curve' has 2 x and 1 y"));
  }
}

TEST(AxisTicks, AreNice) {
  EXPECT_THAT(nice_ticks(0, 10, 5, false), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(nice_ticks(2.8, 3.5, 5, false),
              ElementsAre(2.8000000000000003, 3.0, 3.2, 3.4000000000000004));
  EXPECT_THAT(nice_ticks(-1, 1, 4, false), ElementsAre(-1, -0.5, 0, 0.5, 1));
  EXPECT_THAT(nice_ticks(0.5, 2000, 5, true), ElementsAre(1, 10, 100, 1000));
  EXPECT_THAT(nice_ticks(1, 9, 5, true), ElementsAre(1, 2, 3, 5));
  EXPECT_THAT(nice_ticks(1, 1, 5, false), ElementsAre());
  EXPECT_THAT(nice_ticks(0, 1, 5, true), ElementsAre());
}

TEST(AxisTicks, LabelsHaveNoFalseDigits) {
  EXPECT_EQ(format_tick(0, 1), "0");
  EXPECT_EQ(format_tick(2.8000000000000003, 0.2), "2.8");
  EXPECT_EQ(format_tick(3.0, 0.2), "3.0");
  EXPECT_EQ(format_tick(1000, 1000), "1000");
  EXPECT_EQ(format_tick(12000, 2000), "12k");
  EXPECT_EQ(format_tick(1.2e6, 2e5), "1.2M");
  EXPECT_EQ(format_tick(3e-7, 1e-7), "3e-07");
  EXPECT_EQ(format_tick(0.002, 0.001), "0.002");
  EXPECT_EQ(format_tick(0.03, 0), "0.03");
}

TEST(Smoothing, KeepsConstantsStartsAndGaps) {
  Series raw;
  for (int i = 0; i < 1000; ++i) {
    raw.x.push_back(i);
    raw.y.push_back(i == 500 ? kNan : 2.0);
  }
  raw.y[0] = 9;
  const Series smooth = smoothed(raw);
  EXPECT_EQ(smooth.y[0], 9.0);
  EXPECT_EQ(smooth.y[1], 2.0);
  EXPECT_TRUE(std::isnan(smooth.y[500]));
  EXPECT_NEAR(smooth.y[510], 2.0, 1e-12);
  EXPECT_NEAR(smooth.y[999], 2.0, 1e-12);
}

TEST(Smoothing, FewPointsAreDrawnAsTheyAre) {
  Plot plot;
  Series few = plot_of({1, 2}, {1, 2}).series[0];
  add_curve(plot, few, "few");
  EXPECT_EQ(plot.series.size(), 1U);
  few.x.resize(200, 3.0);
  few.y.resize(200, 3.0);
  add_curve(plot, few, "many");
  ASSERT_EQ(plot.series.size(), 3U);
  EXPECT_TRUE(plot.series[1].is_faint);
  EXPECT_EQ(plot.series[2].color, 1);
}

}  // namespace
}  // namespace ttt::launch
