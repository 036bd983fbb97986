#pragma once
// What `ttt doctor` finds out about the machines of a run, and what it makes of it.

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "launch/collective_timing.h"
#include "launch/placement.h"

namespace ttt::launch {

/// One rank's.
struct RankFacts {
  RankPlace place;
  std::string program;  // its digest
  std::string kernel;
  int num_processors = 0;  // of the host, whether this rank may use them or not
  double memory_gib = 0;
  double free_memory_gib = 0;
  double clock_ahead_seconds = 0;  // of rank 0's
  LinkTime link;                   // to rank 0
  // The run directory as this host sees it; measured by one rank a host.
  std::string disk_problem;
  int disk_code = 0;  // the exit code that a run would end with
  double free_disk_gib = 0;
  double write_gigabytes_per_second = 0;
  double fsync_seconds = 0;  // of one block
};

/// What looks wrong, a sentence with its remedy each.
std::vector<std::string> find_troubles(std::span<const RankFacts> ranks,
                                       std::span<const CollectiveTime> times);

/// All but the link and the clock of this rank; `directory` is written to and left as it was.
RankFacts examine_rank(int num_threads, const std::string& device, const std::string& directory,
                       bool examines_disk);

void to_json(nlohmann::json& json, const RankFacts& facts);
void from_json(const nlohmann::json& json, RankFacts& facts);
void to_json(nlohmann::json& json, const CollectiveTime& time);

}  // namespace ttt::launch
