// ttt: trains, evaluates and converts Test-Time-Training language models.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "configs/run_config.h"
#include "core/base/crash_report.h"
#include "core/base/log.h"
#include "dist/launch_environment.h"
#include "launch/commands.h"
#include "launch/memory_at_load.h"
#ifdef TTT_CUDA
#include "kernels/cuda/ops.h"
#endif

namespace {

constexpr const char* kFooter =
    "Under mpirun and srun every subcommand runs on all ranks; `train` and `eval` share the work.\n"
    "Exit codes: 0 done, 64 usage or configuration, 65 corrupt input, 66 missing input, 73 output\n"
    "in use, 74 I/O, 75 rank lost or hung (retry), 78 resume mismatch, 80 stopped with a "
    "checkpoint\n"
    "(requeue), 81 numerical; docs/reliability.md has all of them.";

// Every rank finds the same mistake in a command or file; rank 0 says it for all of them and ends the
// job before the others speak; mpirun may take two seconds to end those of other hosts.
void let_rank_zero_speak_first(int rank) {
  if (rank != 0) std::this_thread::sleep_for(std::chrono::seconds(3));
}

// Processes that MPI does not connect are all rank 0 and find the same fault.
bool is_first_process() {
  const auto environment =
      ttt::dist::read_launch_environment([](const char* name) { return std::getenv(name); });
  return environment.process == 0;
}

// CLI11 only says that a subcommand is required.
void check_subcommand(const CLI::App& app, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') return;
  const std::string name = argv[1];
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  if (std::ranges::find(names, name) != names.end()) return;
  const std::string nearest = ttt::config::nearest_name(name, names);
  ttt::fail(ttt::ExitCode::kUsage, "there is no subcommand {}{}; ttt --help lists them", name,
            nearest.empty() ? "" : fmt::format("; did you mean {}?", nearest));
}

int run(int argc, char** argv, ttt::dist::Communicator& communicator) {
  CLI::App app("Trains Test-Time-Training language models and their rivals.", "ttt");
  app.require_subcommand(1);
  app.footer(kFooter);
  ttt::launch::Action action;
  ttt::launch::add_prepare_command(app, action);
  ttt::launch::add_train_command(app, action);
  ttt::launch::add_eval_command(app, action);
  ttt::launch::add_generate_command(app, action);
  ttt::launch::add_import_command(app, action);
  ttt::launch::add_export_command(app, action);
  ttt::launch::add_probe_command(app, action);
  ttt::launch::add_inspect_command(app, action);
  ttt::launch::add_plan_command(app, action);
  ttt::launch::add_report_command(app, action);
  ttt::launch::add_doctor_command(app, action);
  check_subcommand(app, argc, argv);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (communicator.rank() != 0) return error.get_exit_code() == 0 ? 0 : 64;
    const int code = app.exit(error);
    return code == 0 ? 0 : static_cast<int>(ttt::ExitCode::kUsage);
  }
  return static_cast<int>(action(communicator));
}

// Not under sanitizers, whose own start must come first.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
__attribute__((section(".preinit_array"),
               used)) void (*const kAtLoad)(int, char**,
                                            char**) = &ttt::launch::check_memory_at_load;
#endif

}  // namespace

int main(int argc, char** argv) {
  std::unique_ptr<ttt::dist::Runtime> runtime;
  int rank = 0;
  try {
    runtime = std::make_unique<ttt::dist::Runtime>();
    rank = runtime->world().rank();
#ifdef TTT_CUDA
    ttt::kernels::set_cuda_backend(ttt::kernels::cuda::backend());
#endif
    ttt::log::configure(rank, "");
    ttt::crash::install(fmt::format("rank {} (host {})", rank, ttt::dist::host_name()));
    return run(argc, argv, runtime->world());
  } catch (const ttt::Error& error) {
    let_rank_zero_speak_first(rank);
    if (runtime || is_first_process()) ttt::log::error("{}", error.what());
    if (runtime) runtime->abort(error.code());
    return static_cast<int>(error.code());
  } catch (const std::bad_alloc&) {
    ttt::log::error("out of memory");
    if (runtime) runtime->abort(ttt::ExitCode::kOutOfMemory);
    return static_cast<int>(ttt::ExitCode::kOutOfMemory);
  } catch (const std::exception& error) {
    let_rank_zero_speak_first(rank);
    ttt::log::error("internal error: {}", error.what());
    if (runtime) runtime->abort(ttt::ExitCode::kInternal);
    return static_cast<int>(ttt::ExitCode::kInternal);
  }
}
