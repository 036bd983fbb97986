#pragma once
// The page a person looks at after a run.

#include <string>

namespace ttt::launch {

/// Writes run_directory/report.html, one file without scripts or links to other files: headline
/// numbers, plots and the configuration (textproto). Needs metrics.jsonl (launch/metrics_log.h); a
/// plot or number whose data are absent is left out. Drawn when present:
///
///   loss_by_position.csv  position, loss and others, of which only the loss is drawn
///   inner_loss.csv        layer, position, then one or more inner losses by column (before and
///                         after the update, say)
///
/// Errors: kMissingInput without metrics.jsonl, kCorruptInput for a damaged input, kIo.
void write_report(const std::string& run_directory, const std::string& configuration);

}  // namespace ttt::launch
