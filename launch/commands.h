#pragma once
// The subcommands of `ttt`. Each add_* describes its options and, when the user chose it, sets
// `action` to what it does.

#include <functional>

#include "configs/run.pb.h"
#include "core/base/error.h"
#include "dist/communicator.h"
#include "dist/watchdog.h"

namespace CLI {
class App;
}

namespace ttt::launch {

using Action = std::function<ExitCode(dist::Communicator&)>;

void add_prepare_command(CLI::App& app, Action& action);
void add_train_command(CLI::App& app, Action& action);
void add_eval_command(CLI::App& app, Action& action);
void add_generate_command(CLI::App& app, Action& action);
void add_import_command(CLI::App& app, Action& action);
void add_export_command(CLI::App& app, Action& action);
void add_probe_command(CLI::App& app, Action& action);
void add_inspect_command(CLI::App& app, Action& action);
void add_plan_command(CLI::App& app, Action& action);
void add_report_command(CLI::App& app, Action& action);
void add_doctor_command(CLI::App& app, Action& action);

/// Sets the kernels' threads for this process: `requested`, or this rank's share of the processors it
/// may run on. Returns the number.
int use_threads(std::int64_t requested, const dist::Communicator& communicator);

/// `directory` is for flight records; empty: none.
dist::WatchdogOptions watchdog_options(const config::WatchdogConfig& config,
                                       const std::string& directory);

}  // namespace ttt::launch
