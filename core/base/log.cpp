#include "core/base/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

namespace ttt::log {
namespace {

struct Loggers {
  std::shared_ptr<spdlog::logger> console;
  std::shared_ptr<spdlog::logger> file;
  bool speaks = true;
};

Loggers& loggers() {
  static Loggers instance = [] {
    auto console = std::make_shared<spdlog::logger>(
        "console", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    console->set_pattern("%H:%M:%S %^%L%$ %v");
    return Loggers{console, nullptr, true};
  }();
  return instance;
}

void write(spdlog::level::level_enum level, const std::string& line, bool to_console) {
  const Loggers& all = loggers();
  if (to_console) all.console->log(level, line);
  if (all.file) all.file->log(level, line);
}

}  // namespace

void configure(int rank, const std::string& file) {
  Loggers& all = loggers();
  all.speaks = rank == 0;
  all.console->set_pattern(rank == 0 ? "%H:%M:%S %^%L%$ %v"
                                     : fmt::format("%H:%M:%S %^%L%$ [rank {}] %v", rank));
  if (!file.empty()) {
    all.file = std::make_shared<spdlog::logger>(
        "file", std::make_shared<spdlog::sinks::basic_file_sink_mt>(file));
    all.file->set_pattern(fmt::format("%Y-%m-%dT%H:%M:%S.%e %L [rank {}] %v", rank));
    all.file->flush_on(spdlog::level::info);
  }
}

void write_info(const std::string& line) { write(spdlog::level::info, line, loggers().speaks); }
void write_warning(const std::string& line) { write(spdlog::level::warn, line, loggers().speaks); }
void write_error(const std::string& line) { write(spdlog::level::err, line, true); }

}  // namespace ttt::log
