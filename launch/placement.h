#pragma once
// Where the ranks of a run are: hosts, the processors they may use, devices; and what is wrong with it.

#include <span>
#include <string>
#include <vector>

#include "dist/communicator.h"

namespace ttt::launch {

struct RankPlace {
  std::string host;
  std::vector<int> cpus;  // this rank may run on, ascending
  int num_threads = 1;
  std::string device;  // what tells one device of the host from another; empty: the CPU
};

/// "0-3,8" for 0 1 2 3 8.
std::string format_ranges(std::span<const int> numbers);

/// This rank's place.
RankPlace my_place(int num_threads, const std::string& device);
/// All ranks' places, by rank. Collective.
std::vector<RankPlace> gather_places(dist::Communicator& communicator, const RankPlace& mine);

/// One line a host: its ranks, and each rank's processors, threads and device.
std::vector<std::string> host_lines(std::span<const RankPlace> places);

/// What will be slow, one sentence with its remedy each: more threads than processors, alone or where ranks share them.
std::vector<std::string> placement_warnings(std::span<const RankPlace> places);

/// Throws kUsage when two ranks compute on one device.
void refuse_shared_devices(std::span<const RankPlace> places);

}  // namespace ttt::launch
