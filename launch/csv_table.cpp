#include "launch/csv_table.h"

#include <algorithm>
#include <charconv>
#include <sstream>

#include "core/base/error.h"
#include "launch/append_file.h"

namespace ttt::launch {
namespace {

std::vector<std::string> split(const std::string& line) {
  std::vector<std::string> fields;
  std::istringstream stream(line);
  for (std::string field; std::getline(stream, field, ',');) {
    fields.push_back(field);
  }
  return fields;
}

}  // namespace

const std::vector<double>& CsvTable::column(const std::string& name) const {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) {
    fail(ExitCode::kCorruptInput, "{}: there is no column '{}'", path, name);
  }
  return columns[static_cast<std::size_t>(found - names.begin())];
}

CsvTable read_csv(const std::string& path) {
  std::istringstream lines(read_file(path));
  CsvTable table;
  table.path = path;
  std::string line;
  std::getline(lines, line);
  table.names = split(line);
  table.columns.resize(table.names.size());
  for (int number = 2; std::getline(lines, line); ++number) {
    const auto fields = split(line);
    if (fields.size() != table.names.size()) {
      fail(ExitCode::kCorruptInput, "{}:{}: {} fields, the header has {}", path, number,
           fields.size(), table.names.size());
    }
    for (std::size_t i = 0; i < fields.size(); ++i) {
      double value = 0;
      const char* end = fields[i].data() + fields[i].size();
      const auto result = std::from_chars(fields[i].data(), end, value);
      if (result.ec != std::errc() || result.ptr != end) {
        fail(ExitCode::kCorruptInput, "{}:{}: '{}' is not a number", path, number, fields[i]);
      }
      table.columns[i].push_back(value);
    }
  }
  return table;
}

}  // namespace ttt::launch
