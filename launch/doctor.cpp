#include "launch/doctor.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>

#include "core/base/timer.h"
#include "dist/launch_environment.h"
#include "launch/agreement.h"

namespace ttt::launch {
namespace {

constexpr double kGib = 1073741824.0;

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values.empty() ? 0 : values[values.size() / 2];
}

// "MemAvailable:   123 kB" of /proc/meminfo.
double memory_gib(const std::string& field) {
  std::ifstream file("/proc/meminfo");
  std::string name;
  double kibibytes = 0;
  for (std::string unit; file >> name >> kibibytes; std::getline(file, unit)) {
    if (name == field + ":") return kibibytes / 1048576.0;
  }
  return 0;
}

// A file of this process that is gone when the block ends.
class ScratchFile {
 public:
  explicit ScratchFile(const std::string& directory)
      : path_(fmt::format("{}/.ttt-doctor-{}-{}", directory, dist::host_name(), getpid())),
        descriptor_(open(path_.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600)) {}
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  ~ScratchFile() {
    if (descriptor_ < 0) return;
    close(descriptor_);
    unlink(path_.c_str());
  }
  [[nodiscard]] int descriptor() const { return descriptor_; }

 private:
  std::string path_;
  int descriptor_;
};

void examine_disk(const std::string& directory, RankFacts& facts) {
  const auto problem = [&](const char* action) {
    facts.disk_problem = fmt::format("cannot {} {}: {}", action, directory, std::strerror(errno));
    const bool is_forbidden = errno == EACCES || errno == EPERM || errno == EROFS;
    facts.disk_code = static_cast<int>(is_forbidden ? ExitCode::kPermission : ExitCode::kIo);
  };
  struct statvfs space {};
  if (statvfs(directory.c_str(), &space) != 0) return problem("look at");
  facts.free_disk_gib =
      static_cast<double>(space.f_bavail) * static_cast<double>(space.f_frsize) / kGib;
  const ScratchFile file(directory);
  if (file.descriptor() < 0) return problem("write in");
  std::vector<double> seconds;
  for (off_t i = 0; i < 16; ++i) {
    const std::array<char, 4096> block{};
    const Timer timer;
    if (pwrite(file.descriptor(), block.data(), block.size(), i * 4096) != 4096 ||
        fsync(file.descriptor()) != 0) {
      return problem("write in");
    }
    seconds.push_back(timer.seconds());
  }
  facts.fsync_seconds = median(seconds);
  const std::vector<char> megabytes(std::size_t{16} << 20U, 'x');
  const Timer timer;
  std::size_t written = 0;
  while (written < megabytes.size()) {
    const ssize_t count = pwrite(file.descriptor(), megabytes.data() + written,
                                 megabytes.size() - written, static_cast<off_t>(written));
    if (count <= 0) return problem("write in");
    written += static_cast<std::size_t>(count);
  }
  if (fsync(file.descriptor()) != 0) return problem("write in");
  facts.write_gigabytes_per_second = static_cast<double>(written) / timer.seconds() * 1e-9;
}

// A sentence for each host whose ranks differ from what most hosts have.
template <typename Value>
void find_odd_hosts(std::span<const RankFacts> ranks, const char* what, const Value& value,
                    std::vector<std::string>& troubles) {
  std::map<std::string, std::string> hosts;
  for (const RankFacts& rank : ranks) hosts[rank.place.host] = value(rank);
  std::map<std::string, int> counts;
  for (const auto& [host, text] : hosts) ++counts[text];
  if (counts.size() < 2) return;
  const auto usual = std::ranges::max_element(
      counts, [](const auto& a, const auto& b) { return a.second < b.second; });
  for (const auto& [host, text] : hosts) {
    if (text == usual->first) continue;
    troubles.push_back(
        fmt::format("host {}: {} {}, others {}: the slowest host sets the pace of all", host, what,
                    text, usual->first));
  }
}

void find_slow_links(std::span<const RankFacts> ranks, std::vector<std::string>& troubles) {
  // By host, of its first rank; rank 0's own host has no link to itself.
  std::map<std::string, double> hosts;
  for (const RankFacts& rank : ranks.subspan(1)) {
    if (rank.place.host != ranks.front().place.host) {
      hosts.try_emplace(rank.place.host, rank.link.gigabytes_per_second);
    }
  }
  std::vector<double> rates;
  rates.reserve(hosts.size());
  for (const auto& [host, rate] : hosts) rates.push_back(rate);
  for (const auto& [host, rate] : hosts) {
    if (rate >= median(rates) / 2) continue;
    troubles.push_back(fmt::format(
        "host {}: {:.2f} GB/s to rank 0, others {:.2f}: look at its cable, port and link speed, or "
        "leave it out (mpirun --host, sbatch --exclude)",
        host, rate, median(rates)));
  }
}

}  // namespace

std::vector<std::string> find_troubles(std::span<const RankFacts> ranks,
                                       std::span<const CollectiveTime> times) {
  std::vector<RankPlace> places;
  for (const RankFacts& rank : ranks) places.push_back(rank.place);
  std::vector<std::string> troubles = placement_warnings(places);
  std::map<std::string, const RankFacts*> hosts;
  std::map<std::string, std::size_t> used;
  for (const RankFacts& rank : ranks) {
    hosts.try_emplace(rank.place.host, &rank);
    used[rank.place.host] += rank.place.device.empty() ? rank.place.cpus.size() : 0;
  }
  for (const auto& [host, rank] : hosts) {
    if (used[host] > 0 && 2 * used[host] < static_cast<std::size_t>(rank->num_processors)) {
      troubles.push_back(fmt::format(
          "host {}: its ranks may use {} of {} processors: mpirun binds a rank to one; --bind-to "
          "none or --map-by ppr:N:node:PE=T, under Slurm --cpus-per-task",
          host, used[host], rank->num_processors));
    }
    if (rank->free_memory_gib < rank->memory_gib / 10) {
      troubles.push_back(
          fmt::format("host {}: {:.1f} of {:.1f} GiB memory are free: something else "
                      "runs there",
                      host, rank->free_memory_gib, rank->memory_gib));
    }
    if (!rank->disk_problem.empty()) {
      troubles.push_back(fmt::format("host {}: {}", host, rank->disk_problem));
    } else if (rank->free_disk_gib < 1) {
      troubles.push_back(fmt::format(
          "host {}: {:.2f} GiB are free for the run: a checkpoint has three times the parameters "
          "(ttt train --dry-run)",
          host, rank->free_disk_gib));
    }
    if (rank->fsync_seconds > 0.2) {
      troubles.push_back(fmt::format(
          "host {}: {:.0f} ms for an fsync: every checkpoint waits for several; a parallel file "
          "system or a longer checkpoint.interval_steps",
          host, rank->fsync_seconds * 1e3));
    }
    if (std::abs(rank->clock_ahead_seconds) > 1) {
      troubles.push_back(
          fmt::format("host {}: its clock is {:+.1f} s against rank 0's, which misleads whoever "
                      "reads the logs: "
                      "start chrony or ntpd there",
                      host, rank->clock_ahead_seconds));
    }
  }
  find_odd_hosts(
      ranks, "processors", [](const RankFacts& r) { return fmt::to_string(r.num_processors); },
      troubles);
  find_odd_hosts(
      ranks, "GiB of memory",
      [](const RankFacts& r) { return fmt::format("{:.0f}", r.memory_gib); }, troubles);
  find_slow_links(ranks, troubles);
  for (const CollectiveTime& time : times) {
    if (time.operation != "all_reduce_sum" || time.bytes > 4 || time.seconds < 2e-3) continue;
    troubles.push_back(fmt::format(
        "{:.1f} ms for a sum of one number: ranks that wait take the processors of those that "
        "work; "
        "fewer ranks, or mpirun --bind-to none --mca mpi_yield_when_idle 1 (launch/mpi_env.sh)",
        time.seconds * 1e3));
  }
  return troubles;
}

RankFacts examine_rank(int num_threads, const std::string& device, const std::string& directory,
                       bool examines_disk) {
  RankFacts facts;
  facts.place = my_place(num_threads, device);
  facts.program = program_digest();
  struct utsname name {};
  if (uname(&name) == 0) facts.kernel = name.release;
  facts.num_processors = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  facts.memory_gib = memory_gib("MemTotal");
  facts.free_memory_gib = memory_gib("MemAvailable");
  if (examines_disk) examine_disk(directory, facts);
  return facts;
}

namespace {

// The one list of what goes from rank to rank and into the JSON: visit(name, member).
template <typename Facts, typename Visit>
void for_each_fact(Facts& facts, const Visit& visit) {
  visit("host", facts.place.host);
  visit("cpus", facts.place.cpus);
  visit("threads", facts.place.num_threads);
  visit("device", facts.place.device);
  visit("program", facts.program);
  visit("kernel", facts.kernel);
  visit("processors", facts.num_processors);
  visit("memory_gib", facts.memory_gib);
  visit("free_memory_gib", facts.free_memory_gib);
  visit("clock_ahead_seconds", facts.clock_ahead_seconds);
  visit("link_latency_seconds", facts.link.latency_seconds);
  visit("link_gigabytes_per_second", facts.link.gigabytes_per_second);
  visit("disk_problem", facts.disk_problem);
  visit("disk_code", facts.disk_code);
  visit("free_disk_gib", facts.free_disk_gib);
  visit("write_gigabytes_per_second", facts.write_gigabytes_per_second);
  visit("fsync_seconds", facts.fsync_seconds);
}

}  // namespace

void to_json(nlohmann::json& json, const RankFacts& facts) {
  for_each_fact(facts, [&](const char* name, const auto& fact) { json[name] = fact; });
}

void from_json(const nlohmann::json& json, RankFacts& facts) {
  for_each_fact(facts, [&](const char* name, auto& fact) { json.at(name).get_to(fact); });
}

void to_json(nlohmann::json& json, const CollectiveTime& time) {
  json = {{"operation", time.operation},
          {"bytes", time.bytes},
          {"seconds", time.seconds},
          {"gigabytes_per_second", time.gigabytes_per_second}};
}

}  // namespace ttt::launch
