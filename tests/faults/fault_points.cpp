// What the places of core/base/fault_point.h do in test programs: FAULT=KIND@RANK:POINT:STEPS[:ARGUMENT],... (tests/README.md).

#include <fmt/format.h>
#include <unistd.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/base/fault_point.h"

namespace ttt {
namespace {

struct Fault {
  std::string kind, point;
  std::optional<int> rank;  // none: all
  std::int64_t first_step = 1, last_step = std::numeric_limits<std::int64_t>::max();
  std::optional<double> argument;
  // A step that a rollback repeats is not disturbed again.
  std::set<std::int64_t> disturbed_now, disturbed_before;
};

[[noreturn]] void refuse(const std::string& text) {
  fmt::print(stderr, "FAULT: \"{}\" is not KIND@RANK:POINT:STEPS[:ARGUMENT]\n", text);
  std::_Exit(64);
}

Fault parse_fault(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ':');) parts.push_back(part);
  const std::size_t at = text.find('@');
  if (parts.size() < 3 || parts.size() > 4 || at == std::string::npos) refuse(text);
  Fault fault;
  fault.kind = text.substr(0, at);
  fault.point = parts[1];
  try {
    const std::string rank = parts[0].substr(at + 1);
    if (rank != "*") fault.rank = std::stoi(rank);
    if (parts[2] != "*") {
      const std::size_t dash = parts[2].find('-');
      fault.first_step = std::stoll(parts[2]);
      fault.last_step =
          dash == std::string::npos ? fault.first_step : std::stoll(parts[2].substr(dash + 1));
    }
    if (parts.size() == 4) fault.argument = std::stod(parts[3]);
  } catch (const std::logic_error&) {
    refuse(text);
  }
  static const std::set<std::string> kKinds{"kill",  "stop", "abort", "exit",  "throw",
                                            "sleep", "nan",  "inf",   "scale", "flip"};
  if (!kKinds.contains(fault.kind)) refuse(text);
  return fault;
}

// Read again whenever the variable has changed, which tests within a program do.
std::vector<Fault>& faults() {
  static std::string parsed;
  static std::vector<Fault> all;
  const char* const variable = std::getenv("FAULT");
  const std::string text = variable == nullptr ? "" : variable;
  if (text == parsed) return all;
  parsed = text;
  all.clear();
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) all.push_back(parse_fault(part));
  return all;
}

int rank_of_process() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    if (const char* const value = std::getenv(name)) return std::atoi(value);
  }
  return 0;
}

template <typename T, typename Bits>
void damage(const Fault& fault, std::int64_t begin, std::span<T> values) {
  if (fault.kind == "scale") {
    for (T& value : values) value *= static_cast<T>(fault.argument.value_or(1e4));
    return;
  }
  const auto place = static_cast<std::int64_t>(fault.argument.value_or(0)) - begin;
  if (place < 0 || place >= static_cast<std::int64_t>(values.size())) return;
  T& value = values[static_cast<std::size_t>(place)];
  if (fault.kind == "nan") value = std::numeric_limits<T>::quiet_NaN();
  if (fault.kind == "inf") value = std::numeric_limits<T>::infinity();
  if (fault.kind == "flip") value = std::bit_cast<T>(std::bit_cast<Bits>(value) ^ Bits{1});
}

void act(const Fault& fault, const FaultSite& site) {
  if (fault.kind == "kill") std::raise(SIGKILL);
  if (fault.kind == "stop") std::raise(SIGSTOP);
  if (fault.kind == "abort") std::abort();
  if (fault.kind == "exit") std::exit(static_cast<int>(fault.argument.value_or(0)));
  if (fault.kind == "throw") throw std::runtime_error("a fault was thrown");
  if (fault.kind == "sleep") {
    std::this_thread::sleep_for(
        std::chrono::duration<double, std::milli>(fault.argument.value_or(1000)));
    return;
  }
  if (!site.values) {
    fmt::print(stderr, "FAULT: there are no values to damage at {}\n", fault.point);
    std::_Exit(64);
  }
  const TensorView values = site.values();
  if (values.dtype() == DType::kF64) {
    damage<double, std::uint64_t>(fault, site.begin, values.span<double>());
  } else {
    damage<float, std::uint32_t>(fault, site.begin, values.span<float>());
  }
}

std::mutex mutex;  // points lie on several threads
std::int64_t current_step = 0;

}  // namespace

void fault_point(std::string_view point, const FaultSite& site) {
  std::vector<Fault> hits;
  {
    const std::scoped_lock lock(mutex);
    if (site.step > 0) {
      current_step = site.step;
      for (Fault& fault : faults()) fault.disturbed_before.merge(fault.disturbed_now);
    }
    static const int rank = rank_of_process();
    for (Fault& fault : faults()) {
      if (fault.point != point || fault.rank.value_or(rank) != rank ||
          current_step < fault.first_step || current_step > fault.last_step ||
          fault.disturbed_before.contains(current_step)) {
        continue;
      }
      fault.disturbed_now.insert(current_step);
      hits.push_back(fault);
    }
  }
  for (const Fault& fault : hits) act(fault, site);
}

}  // namespace ttt
