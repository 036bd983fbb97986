#pragma once
// Small tables of numbers, as evaluation writes them for the report.

#include <string>
#include <vector>

namespace ttt::launch {

struct CsvTable {
  std::vector<std::string> names;            // the header line
  std::vector<std::vector<double>> columns;  // as many, of equal length

  /// The column of this name; throws kCorruptInput with `path` when there is none.
  [[nodiscard]] const std::vector<double>& column(const std::string& name) const;
  std::string path;
};

/// A header line, then lines of numbers ("nan" and "inf" too), separated by commas. Throws
/// kCorruptInput with the line number.
CsvTable read_csv(const std::string& path);

}  // namespace ttt::launch
