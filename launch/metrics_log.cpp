#include "launch/metrics_log.h"

#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "core/base/error.h"

namespace ttt::launch {
namespace {

using Json = nlohmann::ordered_json;

/// Nothing unless `line` is a row.
std::optional<MetricsRow> parse_row(std::string_view line) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer() ||
      !json.contains("kind") || !json["kind"].is_string()) {
    return std::nullopt;
  }
  MetricsRow row;
  for (const auto& [key, value] : json.items()) {
    if (key == "step") {
      row.step = value.get<std::int64_t>();
    } else if (key == "kind") {
      row.kind = value.get<std::string>();
    } else if (value.is_number_integer()) {
      row.values.emplace_back(key, value.get<std::int64_t>());
    } else if (value.is_number()) {
      row.values.emplace_back(key, value.get<double>());
    } else if (value.is_null()) {
      row.values.emplace_back(key, std::numeric_limits<double>::quiet_NaN());
    } else if (value.is_string()) {
      row.values.emplace_back(key, value.get<std::string>());
    } else {
      return std::nullopt;
    }
  }
  return row;
}

}  // namespace

double MetricsRow::number(const std::string& key) const {
  for (const auto& [name, value] : values) {
    if (name != key) {
      continue;
    }
    if (const auto* integer = std::get_if<std::int64_t>(&value)) {
      return static_cast<double>(*integer);
    }
    if (const auto* real = std::get_if<double>(&value)) {
      return *real;
    }
  }
  return std::numeric_limits<double>::quiet_NaN();
}

std::string format_row(const MetricsRow& row) {
  Json json;
  json["step"] = row.step;
  json["kind"] = row.kind;
  for (const auto& [key, value] : row.values) {
    TTT_CHECK(!json.contains(key), "metric {} occurs twice in a row", key);
    std::visit([&, name = key](const auto& item) { json[name] = item; }, value);
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::vector<MetricsRow> read_metrics(const std::string& path) {
  const std::string content = read_file(path);
  std::vector<MetricsRow> rows;
  std::string_view rest = content;
  for (int number = 1; !rest.empty(); ++number) {
    const std::size_t end = rest.find('\n');
    if (end == std::string_view::npos) {
      break;  // cut short: a row is complete with its line end only
    }
    auto row = parse_row(rest.substr(0, end));
    if (!row) {
      fail(ExitCode::kCorruptInput,
           "{}:{}: not a row of metrics (a JSON object with step and kind)", path, number);
    }
    rows.push_back(std::move(*row));
    rest.remove_prefix(end + 1);
  }
  return rows;
}

namespace {

/// Runs before the file is opened for appending.
const std::string& drop_later_rows(const std::string& path, std::int64_t resume_step) {
  if (!std::filesystem::exists(path)) {
    return path;
  }
  std::string kept;
  for (const MetricsRow& row : read_metrics(path)) {
    if (row.step <= resume_step) {
      kept += format_row(row) + '\n';
    }
  }
  if (kept.size() != std::filesystem::file_size(path)) {
    replace_file(path, kept);
  }
  return path;
}

}  // namespace

MetricsLog::MetricsLog(const std::string& path, std::int64_t resume_step)
    : file_(drop_later_rows(path, resume_step)) {}

void MetricsLog::write(const MetricsRow& row) { file_.append(format_row(row) + '\n'); }

}  // namespace ttt::launch
