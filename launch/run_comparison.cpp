#include "launch/run_comparison.h"

#include <filesystem>

#include "configs/run_config.h"
#include "launch/append_file.h"
#include "launch/metrics_log.h"
#include "launch/smoothing.h"
#include "launch/svg_plot.h"

namespace ttt::launch {
namespace {

// Losses of one kind of row; tokens are those of the last training row so far.
Series losses(const std::vector<MetricsRow>& rows, const std::string& kind) {
  Series series;
  double tokens = 0;
  for (const MetricsRow& row : rows) {
    if (row.kind == "train") tokens = row.number("tokens");
    if (row.kind != kind) continue;
    series.x.push_back(tokens);
    series.y.push_back(row.number("loss"));
  }
  return series;
}

std::string name_of_run(const std::string& directory) {
  const std::string config = directory + "/config.textproto";
  if (std::filesystem::exists(config)) return config::load_run_config(config, {}, 0).name();
  return std::filesystem::path(directory).lexically_normal().filename().string();
}

}  // namespace

void write_comparison(const std::vector<std::string>& run_directories, const std::string& path) {
  Plot plot;
  plot.title = "Loss on held-out text";
  plot.x_label = "training tokens";
  plot.y_label = "loss (nats a token)";
  for (const std::string& directory : run_directories) {
    const std::vector<MetricsRow> rows = read_metrics(directory + "/metrics.jsonl");
    Series curve = losses(rows, "eval");
    std::string name = name_of_run(directory);
    if (curve.x.empty()) {
      curve = losses(rows, "train");
      name += " (training)";
    }
    add_curve(plot, std::move(curve), name);
  }
  replace_file(path, render_svg(plot));
}

}  // namespace ttt::launch
