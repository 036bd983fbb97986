#include "dist/launch_environment.h"

#include <mpi.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <utility>

#include "core/base/log.h"
#include "dist/mpi_check.h"
#include "dist/watchdog.h"

namespace ttt::dist {
namespace {

/// Open MPI, PMIx (srun --mpi=pmix), PMI-1 and PMI-2 (MPICH, Intel MPI), MVAPICH2.
constexpr std::array kRankVariables = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK",
                                       "MV2_COMM_WORLD_RANK"};
constexpr std::array kSizeVariables = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"};

/// Slurm numbers the batch script's and the interactive shell's own steps from the top; in these
/// SLURM_NTASKS is the size of later steps.
constexpr std::int64_t kFirstSpecialSlurmStep = 0xfffffff0;

std::int64_t parse_count(const char* name, const char* text) {
  std::int64_t value = 0;
  const char* end = text + std::strlen(text);
  const auto result = std::from_chars(text, end, value);
  if (result.ec != std::errc() || result.ptr != end || value < 0) {
    fail(ExitCode::kUsage, "the environment variable {} is '{}', not a count", name, text);
  }
  return value;
}

bool is_slurm_task(const std::function<const char*(const char*)>& get) {
  const char* step = get("SLURM_STEP_ID");
  return step != nullptr && parse_count("SLURM_STEP_ID", step) < kFirstSpecialSlurmStep;
}

}  // namespace

LaunchEnvironment read_launch_environment(const std::function<const char*(const char*)>& get) {
  LaunchEnvironment environment;
  for (const char* name : kRankVariables) {
    if (get(name) != nullptr) {
      environment.rank_variable = name;
      environment.process = static_cast<int>(parse_count(name, get(name)));
      break;
    }
  }
  const auto read_size = [&](const char* name) {
    const char* text = get(name);
    if (text == nullptr) {
      return false;
    }
    environment.size_variable = name;
    environment.expected_size = static_cast<int>(parse_count(name, text));
    return true;
  };
  for (const char* name : kSizeVariables) {
    if (read_size(name)) {
      return environment;
    }
  }
  if (is_slurm_task(get)) {
    if (!read_size("SLURM_STEP_NUM_TASKS")) read_size("SLURM_NTASKS");
    const char* process = get("SLURM_PROCID");
    if (environment.rank_variable.empty() && process != nullptr) {
      environment.process = static_cast<int>(parse_count("SLURM_PROCID", process));
    }
  }
  return environment;
}

std::string host_name() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

std::string mpi_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  TTT_MPI_CHECK(MPI_Get_library_version(text.data(), &length));
  const std::string version = text.data();  // Open MPI counts its final NUL
  return version.substr(0, version.find('\n'));
}

void check_world_size(const LaunchEnvironment& environment, int mpi_size) {
  if (mpi_size == 1 && environment.expected_size > 1) {
    fail(ExitCode::kUsage,
         "the launcher started {} processes ({}), but MPI connects none of them: each would run "
         "alone. Under Slurm use --mpi=pmix; elsewhere use the mpirun of the MPI library that ttt "
         "was built with",
         environment.expected_size, environment.size_variable);
  }
}

Runtime::Runtime() : num_exceptions_(std::uncaught_exceptions()) {
  const LaunchEnvironment environment =
      read_launch_environment([](const char* name) { return std::getenv(name); });
  if (environment.rank_variable.empty()) {
    check_world_size(environment, 1);
    world_ = make_single_communicator();
    return;
  }
  // Multiple: gradients travel from a thread of their own (dist/gradient_sum.h). Who needs more than there is says so.
  int provided = MPI_THREAD_SINGLE;
  TTT_MPI_CHECK(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided));
  try {
    TTT_CHECK(provided >= MPI_THREAD_SERIALIZED, "MPI gives thread level {}, {} is needed",
              provided, MPI_THREAD_SERIALIZED);
    world_ = make_mpi_communicator();
    check_world_size(environment, world_->size());
  } catch (...) {
    // Every singleton finds the same fault and waits for nobody: leave MPI in order.
    world_.reset();
    MPI_Finalize();
    throw;
  }
  uses_mpi_ = true;
}

Runtime::~Runtime() {
  if (!uses_mpi_) {
    return;
  }
  if (std::uncaught_exceptions() > num_exceptions_) {
    log::error("event=abort reason=\"an exception left the program\"");
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(ExitCode::kInternal));
  }
  world_.reset();
  MPI_Finalize();
}

void Runtime::abort(ExitCode code) {
  exit_within(10, code);  // MPI_Abort may wait for a daemon that is not there any more
  world_->abort(code);
  std::_Exit(static_cast<int>(code));  // [[noreturn]] is not seen through a virtual call
}

}  // namespace ttt::dist
