#pragma once
// What `ttt plan` and `ttt train --dry-run` say, as text, CSV and SVG.

#include <string>
#include <vector>

#include "launch/grid_choice.h"

namespace ttt::launch {

/// Memory of a rank by class, one line each.
std::string memory_text(const MemoryPlan& memory);
/// What a plan assumes of documents with data.reset_at_bos, on a line; empty without it.
std::string documents_text(const config::RunConfig& config);

/// Work, memory, traffic and predicted time of one way to run.
std::string candidate_text(const Candidate& candidate, const StepTrace& trace,
                           const config::MachineConfig& machine);
/// The best candidates beside it, and why the others cannot run.
std::string choice_text(const std::vector<Candidate>& candidates);
/// Checkpoints and failures.
std::string goodput_text(const Candidate& candidate, const StepTrace& trace,
                         const config::MachineConfig& machine);

/// Of one candidate a number of ranks, smallest first; all of them run.
std::string sweep_csv(const std::vector<Candidate>& best, const config::MachineConfig& machine);
std::string sweep_svg(const std::vector<Candidate>& best, const config::MachineConfig& machine);
/// Tokens a second and rank, as a fraction of those of the first of the sweep.
double sweep_efficiency(const Candidate& candidate, const Candidate& first);

}  // namespace ttt::launch
