#include "launch/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <map>
#include <optional>
#include <sstream>
#include <utility>
#include <vector>

#include "launch/append_file.h"
#include "launch/csv_table.h"
#include "launch/metrics_log.h"
#include "launch/progress_line.h"
#include "launch/smoothing.h"
#include "launch/svg_plot.h"

namespace ttt::launch {
namespace {

using Rows = std::vector<MetricsRow>;
using Entries = std::vector<std::pair<std::string, std::string>>;

constexpr const char* kStyle = R"(
body { margin: 0; background: #f5f6f8; color: #1c1e21; font: 15px/1.45 system-ui, Helvetica, Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 26px; margin: 0 0 16px; }
h2 { font-size: 18px; margin: 36px 0 12px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; }
.tile { background: #fff; border: 1px solid #e1e4e8; border-radius: 8px; padding: 12px 14px; }
.tile b { display: block; font-size: 23px; font-variant-numeric: tabular-nums; }
.tile span { color: #667; font-size: 13px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 14px; }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 280px), 1fr)); margin-top: 14px; }
.plots svg { width: 100%; height: auto; border: 1px solid #e1e4e8; border-radius: 8px; background: #fff; }
table { border-collapse: collapse; background: #fff; border: 1px solid #e1e4e8; font-size: 13px; }
td { padding: 3px 14px; border-top: 1px solid #eef0f2; font-family: ui-monospace, Menlo, Consolas, monospace; }
td:first-child { color: #556; }
@media print { body { background: #fff; } }
)";

/// Textproto as dotted names and values: "model { hidden_size: 768 }" is model.hidden_size = 768.
Entries flatten(const std::string& configuration) {
  Entries entries;
  std::vector<std::string> path;
  std::istringstream lines(configuration);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t begin = line.find_first_not_of(" \t");
    const std::size_t end = line.find_last_not_of(" \t\r");
    if (begin == std::string::npos || line[begin] == '#') {
      continue;
    }
    line = line.substr(begin, end - begin + 1);
    const std::size_t colon = line.find(':');
    if (line == "}") {
      if (!path.empty()) {
        path.pop_back();
      }
    } else if (line.back() == '{' && colon == std::string::npos) {
      path.push_back(line.substr(0, line.find_first_of(" {")));
    } else {
      const std::string name = line.substr(0, colon);
      const std::size_t value =
          colon == std::string::npos ? colon : line.find_first_not_of(' ', colon + 1);
      entries.emplace_back(
          fmt::format("{}{}{}", fmt::join(path, "."), path.empty() ? "" : ".", name),
          value == std::string::npos ? "" : line.substr(value));
    }
  }
  return entries;
}

/// One key of all rows of a kind; rows without the key are not in it.
Series series_of(const Rows& rows, const std::string& kind, const std::string& key) {
  Series series;
  for (const MetricsRow& row : rows) {
    const bool has_key = std::any_of(row.values.begin(), row.values.end(),
                                     [&](const auto& value) { return value.first == key; });
    if (row.kind == kind && has_key) {
      series.x.push_back(static_cast<double>(row.step));
      series.y.push_back(row.number(key));
    }
  }
  return series;
}

Plot make_plot(const std::string& title, const std::string& x_label, const std::string& y_label) {
  Plot plot;
  plot.title = title;
  plot.x_label = x_label;
  plot.y_label = y_label;
  return plot;
}

bool has_points(const Series& series) {
  return std::any_of(series.y.begin(), series.y.end(), [](double y) { return std::isfinite(y); });
}

/// A norm or loss that spans decades is read on a log axis.
bool spans_decades(const Series& series) {
  double low = INFINITY;
  double high = 0;
  for (const double y : series.y) {
    if (std::isfinite(y) && y > 0) {
      low = std::min(low, y);
      high = std::max(high, y);
    }
  }
  return high > 10 * low;
}

/// Both losses without the steep beginning, which hides what comes after; empty for short runs.
std::string late_loss_plot(const Rows& rows) {
  Plot plot = make_plot("Loss after the first tenth", "step", "loss (nats a token)");
  const auto last_step = [](const Series& series) {
    return series.x.empty() ? 0 : series.x.back();
  };
  Series training = series_of(rows, "train", "loss");
  Series validation = series_of(rows, "eval", "loss");
  const double begin = last_step(training) / 10;
  const auto late = [&](const Series& series) {
    Series kept;
    for (std::size_t i = 0; i < series.x.size(); ++i) {
      if (series.x[i] > begin) {
        kept.x.push_back(series.x[i]);
        kept.y.push_back(series.y[i]);
      }
    }
    return kept;
  };
  training = late(training);
  validation = late(validation);
  if (training.x.size() < 20 || !has_points(training)) {
    return "";
  }
  add_curve(plot, std::move(training), "training");
  if (has_points(validation)) {
    validation.name = "validation";
    validation.color = 1;
    plot.series.push_back(std::move(validation));
  }
  return render_svg(plot);
}

std::string training_plots(const Rows& rows) {
  struct Curve {
    const char* kind;
    const char* key;
    const char* title;
    const char* y_label;
    bool is_smoothed;
    bool may_be_log;
  };
  constexpr std::array kCurves = {
      Curve{"train", "loss", "Training loss", "loss (nats a token)", true, false},
      Curve{"eval", "loss", "Validation loss", "loss (nats a token)", false, false},
      Curve{"train", "learning_rate", "Learning rate", "learning rate", false, false},
      Curve{"train", "grad_norm", "Gradient norm before clipping", "norm", true, true},
      Curve{"train", "tokens_per_second", "Throughput", "tokens a second", true, false},
  };
  std::string html;
  for (const Curve& curve : kCurves) {
    Series series = series_of(rows, curve.kind, curve.key);
    if (!has_points(series)) {
      continue;
    }
    Plot plot = make_plot(curve.title, "step", curve.y_label);
    plot.log_y = curve.may_be_log && spans_decades(series);
    if (curve.is_smoothed) {
      add_curve(plot, std::move(series), "");
    } else {
      plot.series.push_back(std::move(series));
    }
    html += render_svg(plot);
    if (&curve == kCurves.data()) {
      html += late_loss_plot(rows);
    }
  }
  return html.empty() ? "" : "<h2>Training</h2>\n<div class=\"plots\">\n" + html + "</div>\n";
}

std::string position_plot(const std::string& path) {
  if (!std::filesystem::exists(path)) {
    return "";
  }
  const CsvTable table = read_csv(path);
  const auto& positions = table.column("position");
  Plot plot =
      make_plot("Loss by position in the context", "tokens of context", "loss (nats a token)");
  plot.log_x = true;
  plot.width = 1160;
  Series series;
  for (const double position : positions) {
    series.x.push_back(position + 1);  // counted from 0: the first token is its own context
  }
  series.y = table.column("loss");  // the other columns have other units
  add_curve(plot, std::move(series), "");
  return "<h2>Use of the context</h2>\n<div class=\"plots\">\n" + render_svg(plot) + "</div>\n";
}

/// The last loss column of all layers in one plot, then all columns with a plot a layer.
std::string inner_loss_plots(const std::string& path) {
  if (!std::filesystem::exists(path)) {
    return "";
  }
  const CsvTable table = read_csv(path);
  const auto& layers = table.column("layer");
  const auto& positions = table.column("position");
  std::map<double, Plot> by_layer;
  Plot all = make_plot("", "position (tokens)", "inner loss");
  all.width = 1160;
  all.is_ordered = true;
  for (std::size_t column = 0; column < table.names.size(); ++column) {
    const std::string& name = table.names[column];
    if (name == "layer" || name == "position") {
      continue;
    }
    std::map<double, Series> curves;
    for (std::size_t row = 0; row < layers.size(); ++row) {
      curves[layers[row]].x.push_back(positions[row]);
      curves[layers[row]].y.push_back(table.columns[column][row]);
    }
    all.title = fmt::format("Inner loss of all layers: {}", name);
    all.series.clear();
    for (auto& [layer, curve] : curves) {
      Plot& plot = by_layer
                       .try_emplace(layer, make_plot(fmt::format("Layer {}", layer), "position",
                                                     "inner loss"))
                       .first->second;
      plot.width = 380;
      plot.height = 250;
      curve.name = name;
      plot.series.push_back(curve);
      curve.name = fmt::format("layer {}", layer);
      all.series.push_back(curve);
    }
  }
  std::string html = "<h2>Inner loop</h2>\n<div class=\"plots\">\n" + render_svg(all) +
                     "</div>\n<div class=\"plots small\">\n";
  for (const auto& [layer, plot] : by_layer) {
    html += render_svg(plot);
  }
  return html + "</div>\n";
}

std::optional<double> last_finite(const Series& series) {
  for (auto y = series.y.rbegin(); y != series.y.rend(); ++y) {
    if (std::isfinite(*y)) {
      return *y;
    }
  }
  return std::nullopt;
}

std::optional<double> median(Series series) {
  std::erase_if(series.y, [](double y) { return !std::isfinite(y); });
  if (series.y.empty()) {
    return std::nullopt;
  }
  const auto middle = series.y.begin() + static_cast<std::ptrdiff_t>(series.y.size() / 2);
  std::nth_element(series.y.begin(), middle, series.y.end());
  return *middle;
}

std::string headline(const Rows& rows) {
  std::string tiles;
  const auto tile = [&](const std::string& value, const std::string& label) {
    tiles += fmt::format("<div class=\"tile\"><b>{}</b><span>{}</span></div>\n",
                         escape_markup(value), escape_markup(label));
  };
  const Series loss = series_of(rows, "train", "loss");
  if (!loss.y.empty()) {
    // The last value as it is: a run that ended on NaN must not look well.
    tile(fmt::format("{:.4f}", loss.y.back()),
         fmt::format("final training loss (step {})", loss.x.back()));
  }
  const Series validation = series_of(rows, "eval", "loss");
  if (has_points(validation)) {
    std::size_t best = 0;
    for (std::size_t i = 0; i < validation.y.size(); ++i) {
      if (!(validation.y[i] >= validation.y[best])) {
        best = std::isfinite(validation.y[i]) ? i : best;
      }
    }
    tile(fmt::format("{:.4f}", validation.y[best]),
         fmt::format("best validation loss (step {}), perplexity {:.2f}", validation.x[best],
                     std::exp(validation.y[best])));
  }
  if (const auto parameters = last_finite(series_of(rows, "run", "parameters"))) {
    tile(format_count(*parameters), "parameters");
  }
  if (const auto tokens = last_finite(series_of(rows, "train", "tokens"))) {
    tile(format_count(*tokens), "training tokens");
  }
  if (const auto rate = median(series_of(rows, "train", "tokens_per_second"))) {
    tile(format_count(*rate), "tokens a second (median)");
  }
  if (const auto seconds = last_finite(series_of(rows, "train", "wall_seconds"))) {
    tile(format_duration(*seconds), "wall time");
  }
  if (const auto ranks = last_finite(series_of(rows, "run", "num_ranks"))) {
    tile(format_count(*ranks), "ranks");
  }
  return "<div class=\"tiles\">\n" + tiles + "</div>\n";
}

std::string configuration_table(const Entries& entries) {
  if (entries.empty()) {
    return "";
  }
  std::string html = "<h2>Configuration</h2>\n<table>\n";
  for (const auto& [name, value] : entries) {
    html +=
        fmt::format("<tr><td>{}</td><td>{}</td></tr>\n", escape_markup(name), escape_markup(value));
  }
  return html + "</table>\n";
}

std::string title_of(const std::string& run_directory, const Entries& entries) {
  for (const auto& [name, value] : entries) {
    if (name == "name" && value.size() > 2) {
      return value.substr(1, value.size() - 2);  // without its quotes
    }
  }
  return std::filesystem::path(run_directory).lexically_normal().filename().string();
}

}  // namespace

void write_report(const std::string& run_directory, const std::string& configuration) {
  const Rows rows = read_metrics(run_directory + "/metrics.jsonl");
  const Entries entries = flatten(configuration);
  const std::string title = escape_markup(title_of(run_directory, entries));
  const std::string html =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>" +
      title + "</title>\n<style>" + kStyle + "</style>\n</head>\n<body>\n<main>\n<h1>" + title +
      "</h1>\n" + headline(rows) + training_plots(rows) +
      position_plot(run_directory + "/loss_by_position.csv") +
      inner_loss_plots(run_directory + "/inner_loss.csv") + configuration_table(entries) +
      "</main>\n</body>\n</html>\n";
  replace_file(run_directory + "/report.html", html);
}

}  // namespace ttt::launch
