#pragma once
// How this process was started, and the lifetime of MPI.

#include <functional>
#include <memory>
#include <string>

#include "core/base/error.h"
#include "dist/communicator.h"

namespace ttt::dist {

/// What the environment variables of a launcher say. Sources are never mixed: under mpirun inside a
/// Slurm job, SLURM_PROCID is that of mpirun's daemon.
struct LaunchEnvironment {
  std::string rank_variable;  // OMPI_COMM_WORLD_RANK, PMIX_RANK, ...; empty: no MPI launcher
  std::string size_variable;  // the variable that `expected_size` comes from; empty: none
  int expected_size = 1;      // processes the launcher says it started
  int process = 0;            // this one's number among them
};

/// `get` is std::getenv, or a test's.
LaunchEnvironment read_launch_environment(const std::function<const char*(const char*)>& get);

/// The name of this host.
std::string host_name();

/// "Open MPI v4.1.4, ..." as the library calls itself.
std::string mpi_version();

/// Throws kUsage when a launcher started several processes that MPI does not connect: each would
/// train alone and overwrite the others' files.
void check_world_size(const LaunchEnvironment& environment, int mpi_size);

/// Initialises MPI when an MPI launcher started this process; otherwise the process is the only
/// rank and MPI is not touched. One per process; construct it first in main:
///
///   Runtime runtime;
///   try { ... } catch (const Error& error) { runtime.abort(error.code()); }
class Runtime {
 public:
  Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;
  /// Finalises MPI. During unwinding it aborts all ranks instead: finalising would wait for them.
  ~Runtime();

  [[nodiscard]] Communicator& world() { return *world_; }
  /// Ends all ranks; the launcher exits with `code`.
  [[noreturn]] void abort(ExitCode code);

 private:
  bool uses_mpi_ = false;
  int num_exceptions_ = 0;  // in flight when this was constructed
  std::unique_ptr<Communicator> world_;
};

}  // namespace ttt::dist
