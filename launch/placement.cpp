#include "launch/placement.h"

#include <fmt/ranges.h>
#include <sched.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "dist/launch_environment.h"

namespace ttt::launch {
namespace {

using HostRanks = std::map<std::string, std::vector<int>>;

HostRanks ranks_by_host(std::span<const RankPlace> places) {
  HostRanks hosts;
  for (std::size_t rank = 0; rank < places.size(); ++rank) {
    hosts[places[rank].host].push_back(static_cast<int>(rank));
  }
  return hosts;
}

const RankPlace& place_of(std::span<const RankPlace> places, int rank) {
  return places[static_cast<std::size_t>(rank)];
}

// A value that all ranks of a host share is said once, else one a rank in their order.
template <typename Function>
std::string values_of(std::span<const RankPlace> places, const std::vector<int>& ranks,
                      const Function& value) {
  std::vector<std::string> values;
  values.reserve(ranks.size());
  for (const int rank : ranks) values.push_back(value(place_of(places, rank)));
  if (std::ranges::adjacent_find(values, std::ranges::not_equal_to()) == values.end()) {
    return values.front();
  }
  return fmt::format("{}", fmt::join(values, "|"));
}

}  // namespace

std::string format_ranges(std::span<const int> numbers) {
  std::string text;
  for (std::size_t begin = 0; begin < numbers.size();) {
    std::size_t end = begin + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    text += fmt::format("{}{}", text.empty() ? "" : ",", numbers[begin]);
    if (end - begin > 1) text += fmt::format("-{}", numbers[end - 1]);
    begin = end;
  }
  return text;
}

RankPlace my_place(int num_threads, const std::string& device) {
  RankPlace place{dist::host_name(), {}, num_threads, device};
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return place;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) place.cpus.push_back(cpu);
  }
  return place;
}

std::vector<RankPlace> gather_places(dist::Communicator& communicator, const RankPlace& mine) {
  const nlohmann::json json = {mine.host, mine.cpus, mine.num_threads, mine.device};
  std::vector<RankPlace> places;
  for (const std::string& text : communicator.gather_strings(json.dump())) {
    const nlohmann::json place = nlohmann::json::parse(text);
    places.push_back({place[0], place[1], place[2], place[3]});
  }
  return places;
}

std::vector<std::string> host_lines(std::span<const RankPlace> places) {
  std::vector<std::string> lines;
  for (const auto& [host, ranks] : ranks_by_host(places)) {
    lines.push_back(fmt::format(
        "host={} ranks={} cpus={} threads={} device={}", host, format_ranges(ranks),
        values_of(places, ranks, [](const RankPlace& p) { return format_ranges(p.cpus); }),
        values_of(places, ranks, [](const RankPlace& p) { return fmt::to_string(p.num_threads); }),
        values_of(places, ranks,
                  [](const RankPlace& p) { return p.device.empty() ? "cpu" : p.device; })));
  }
  return lines;
}

std::vector<std::string> placement_warnings(std::span<const RankPlace> places) {
  std::vector<std::string> warnings;
  for (const auto& [host, ranks] : ranks_by_host(places)) {
    // Ranks confined to a set of processors have no more than those: too many threads in any rank's set
    // are too many.
    std::set<std::vector<int>> sets;
    for (const int rank : ranks) sets.insert(place_of(places, rank).cpus);
    for (const std::vector<int>& cpus : sets) {
      std::vector<int> confined;
      std::size_t threads = 0;
      for (const int rank : ranks) {
        const RankPlace& place = place_of(places, rank);
        if (!std::ranges::includes(cpus, place.cpus)) continue;
        confined.push_back(rank);
        threads += static_cast<std::size_t>(place.num_threads);
      }
      if (threads <= cpus.size()) continue;
      warnings.push_back(fmt::format(
          "host {}: rank{} {} run{} {} threads on {} processor{} ({}); give {} more (mpirun "
          "--map-by ppr:N:node:PE=T or --bind-to none, srun --cpus-per-task), or set "
          "train.num_threads, or start fewer ranks",
          host, confined.size() > 1 ? "s" : "", format_ranges(confined),
          confined.size() > 1 ? "" : "s", threads, cpus.size(), cpus.size() == 1 ? "" : "s",
          format_ranges(cpus), confined.size() > 1 ? "them" : "it"));
    }
  }
  return warnings;
}

void refuse_shared_devices(std::span<const RankPlace> places) {
  std::map<std::pair<std::string, std::string>, int> owner;
  for (std::size_t rank = 0; rank < places.size(); ++rank) {
    const RankPlace& place = places[rank];
    if (place.device.empty()) continue;
    const auto [found, is_new] =
        owner.try_emplace({place.host, place.device}, static_cast<int>(rank));
    if (is_new) continue;
    fail(ExitCode::kUsage,
         "ranks {} and {} of host {} would compute on one device, {}: start as many ranks on a "
         "host as it has devices (mpirun --map-by ppr:N:node, srun --ntasks-per-node), or pass "
         "--share-devices",
         found->second, rank, place.host, place.device);
  }
}

}  // namespace ttt::launch
