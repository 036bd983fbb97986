#pragma once
// Several runs in one plot.

#include <string>
#include <vector>

namespace ttt::launch {

/// Writes an SVG with the held-out loss of every run against the tokens it has trained on; a run without validation
/// shows its smoothed training loss. Named by the runs' configurations.
/// Errors: kMissingInput for a run without metrics.jsonl, kCorruptInput for a damaged one, kIo.
void write_comparison(const std::vector<std::string>& run_directories, const std::string& path);

}  // namespace ttt::launch
