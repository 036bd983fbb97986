#pragma once
// The program's log: one line an event, `key=value` with units. Rank 0 also writes to stderr.

#include <fmt/format.h>

#include <string>
#include <utility>

namespace ttt::log {

/// Prefixes every line with the rank; only rank 0 writes to the console. Until this is called the
/// process counts as rank 0. `file` (may be empty) receives every line of this rank.
void configure(int rank, const std::string& file);

void write_info(const std::string& line);
void write_warning(const std::string& line);
void write_error(const std::string& line);  // to the console on every rank

template <typename... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  write_info(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
  write_warning(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  write_error(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace ttt::log
