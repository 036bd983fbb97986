#pragma once
// Descriptions of machines (configs/machine.proto): read, checked, and measured.

#include <string>

#include "configs/machine.pb.h"
#include "configs/run.pb.h"
#include "dist/communicator.h"
#include "kernels/planning.h"

namespace ttt::launch {

/// Reads `path`. kUsage with one line for every problem; 66 when it is missing.
config::MachineConfig load_machine(const std::string& path);

/// Everything that is wrong with the numbers; empty if nothing.
std::vector<std::string> find_machine_problems(const config::MachineConfig& machine);

/// The present machine, measured: the rate of every op that a step of `config` runs, at its shapes, and, on two or more
/// ranks, the link between rank 0 and 1. Seconds are those of the process's processors divided by its threads, so that
/// other programs on the machine count less. CPU only. Collective; the result is rank 0's on every rank.
config::MachineConfig measure_machine(const config::RunConfig& config,
                                      dist::Communicator& communicator, int threads);

}  // namespace ttt::launch
