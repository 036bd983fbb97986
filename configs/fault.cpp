#include "configs/fault.h"

#include <algorithm>
#include <cctype>

namespace ttt::config {
namespace {

struct Range {
  std::size_t begin = 0, end = 0;
};

// Where line `line` begins, and where it ends.
Range line_range(const std::string& text, int line) {
  std::size_t begin = 0;
  for (int i = 0; i < line; ++i) {
    begin = text.find('\n', begin);
    if (begin == std::string::npos) return {text.size(), text.size()};
    ++begin;
  }
  return {begin, std::min(text.find('\n', begin), text.size())};
}

// Where `name: value` is whose value begins at `at`; empty if there is none.
Range assignment_at(const std::string& text, std::size_t at) {
  const auto is_name = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
  };
  std::size_t begin = at;
  const auto skip_spaces = [&] {
    while (begin > 0 && (text[begin - 1] == ' ' || text[begin - 1] == '\t')) --begin;
  };
  skip_spaces();
  if (begin == 0 || text[begin - 1] != ':') return {at, at};
  --begin;
  skip_spaces();
  const std::size_t name_end = begin;
  while (begin > 0 && is_name(text[begin - 1])) --begin;
  if (begin == name_end || at >= text.size()) return {at, at};
  const char quote = text[at];
  if (quote != '"' && quote != '\'') {
    return {begin, std::min(text.find_first_of(" \t\r\n,;}>#", at), text.size())};
  }
  const std::size_t line_end = std::min(text.find('\n', at), text.size());
  std::size_t end = at + 1;
  while (end < line_end && text[end] != quote) end += text[end] == '\\' ? 2 : 1;
  return {begin, std::min(end + 1, line_end)};
}

// Where column `column` of the parser, which advances to multiples of 8 at tabs, is in a line.
std::size_t offset_of(const std::string& text, Range line, int column) {
  std::size_t at = line.begin;
  for (int i = 0; i < column && at < line.end; ++at) i = text[at] == '\t' ? (i / 8 + 1) * 8 : i + 1;
  return at;
}

// With the separator behind it.
Fault without(const std::string& text, int line, Range assignment) {
  const bool has_separator =
      assignment.end < text.size() && (text[assignment.end] == ',' || text[assignment.end] == ';');
  return {line, assignment.begin, assignment.end + (has_separator ? 1 : 0)};
}

}  // namespace

Fault find_fault(const std::string& text, int line, int column, const std::string& value) {
  const Range reported = line_range(text, line);
  const Fault whole_line{line, reported.begin, reported.end};
  if (value.empty()) {
    const Range assignment = assignment_at(text, offset_of(text, reported, column));
    return assignment.begin < assignment.end ? without(text, line, assignment) : whole_line;
  }
  std::size_t at = text.rfind(value, reported.end);
  while (at != std::string::npos) {
    const Range assignment = assignment_at(text, at);
    if (assignment.begin < assignment.end && assignment.end == at + value.size()) {
      const auto begin = text.begin() + static_cast<std::ptrdiff_t>(assignment.begin);
      const auto its_line = static_cast<int>(std::count(text.begin(), begin, '\n'));
      return without(text, its_line, assignment);
    }
    at = at == 0 ? std::string::npos : text.rfind(value, at - 1);
  }
  return whole_line;
}

}  // namespace ttt::config
