#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>

#include "core/base/log.h"
#include "data/files.h"
#include "dist/launch_environment.h"
#include "dist/watchdog.h"
#include "kernels/device_ops.h"
#include "kernels/versions.h"
#include "launch/agreement.h"
#include "launch/commands.h"
#include "launch/device.h"
#include "launch/doctor.h"

namespace ttt::launch {
namespace {

struct DoctorOptions {
  std::string directory = ".";
  std::string device = "auto";
  std::int64_t largest_bytes = std::int64_t{16} << 20;
  bool json = false;
};

struct Diagnosis {
  std::vector<std::string> versions;
  std::vector<RankFacts> ranks;
  std::vector<CollectiveTime> times;
  std::vector<std::string> troubles;
};

std::vector<std::string> versions() {
  std::vector<std::string> all = {dist::mpi_version(), "HDF5 " + data::hdf5_version(),
                                  kernels::blas_version()};
  if (const std::string cuda = kernels::cuda_versions(); !cuda.empty()) all.push_back(cuda);
  return all;
}

Diagnosis examine(const DoctorOptions& options, dist::Communicator& communicator) {
  // A network that loses messages must not keep the doctor waiting.
  dist::WatchdogOptions limits;
  limits.silence_seconds = 30;
  limits.phase_seconds.fill(120);
  dist::Watchdog watchdog(communicator, limits);
  Diagnosis diagnosis;
  diagnosis.versions = versions();
  Stream stream = open_stream(options.device, DType::kF32, communicator);
  RankFacts mine = examine_rank(use_threads(0, communicator), kernels::device_id(stream),
                                options.directory, communicator.local_rank() == 0);
  for (const std::string& text : communicator.gather_strings(nlohmann::json(mine).dump())) {
    diagnosis.ranks.push_back(nlohmann::json::parse(text).get<RankFacts>());
  }
  for (int peer = 1; peer < communicator.size(); ++peer) {
    RankFacts& facts = diagnosis.ranks[static_cast<std::size_t>(peer)];
    facts.clock_ahead_seconds = clock_offset(communicator, peer);
    facts.link = time_link(communicator, peer, stream);
  }
  if (communicator.size() > 1) {
    diagnosis.times = time_collectives(communicator, options.largest_bytes, stream);
  }
  diagnosis.troubles = find_troubles(diagnosis.ranks, diagnosis.times);
  watchdog.finish();
  return diagnosis;
}

void print_text(const Diagnosis& diagnosis) {
  for (const std::string& version : diagnosis.versions) std::cout << version << "\n";
  std::vector<RankPlace> places;
  for (const RankFacts& rank : diagnosis.ranks) places.push_back(rank.place);
  for (const std::string& line : host_lines(places)) std::cout << line << "\n";
  std::cout
      << "\nrank  host             memory GiB (free)  clock s   link us   GB/s  disk free GiB  "
         "GB/s  fsync ms\n";
  for (std::size_t r = 0; r < diagnosis.ranks.size(); ++r) {
    const RankFacts& rank = diagnosis.ranks[r];
    std::cout << fmt::format("{:>4}  {:<15}  {:>7.1f} ({:>7.1f})  {:>+9.3f} {:>9.1f} {:>6.2f}", r,
                             rank.place.host, rank.memory_gib, rank.free_memory_gib,
                             rank.clock_ahead_seconds, rank.link.latency_seconds * 1e6,
                             rank.link.gigabytes_per_second);
    if (rank.fsync_seconds > 0) {
      std::cout << fmt::format("  {:>13.1f} {:>5.2f} {:>9.2f}", rank.free_disk_gib,
                               rank.write_gigabytes_per_second, rank.fsync_seconds * 1e3);
    }
    std::cout << "\n";
  }
  if (!diagnosis.times.empty()) {
    std::cout << fmt::format("\n{:<20} {:>10} {:>12} {:>8}\n", "operation", "bytes", "median us",
                             "GB/s");
  }
  for (const CollectiveTime& time : diagnosis.times) {
    std::cout << fmt::format("{:<20} {:>10} {:>12.1f} {:>8.3f}\n", time.operation, time.bytes,
                             time.seconds * 1e6, time.gigabytes_per_second);
  }
  std::cout << (diagnosis.troubles.empty() ? "\nnothing looks wrong\n" : "\nwhat looks wrong:\n");
  for (const std::string& trouble : diagnosis.troubles) std::cout << "- " << trouble << "\n";
}

ExitCode doctor(const DoctorOptions& options, dist::Communicator& communicator) {
  if (options.largest_bytes < 4) {
    fail(ExitCode::kUsage, "--largest-bytes {}: must be at least 4", options.largest_bytes);
  }
  run_together(communicator, [&] {
    if (!std::filesystem::is_directory(options.directory)) {
      fail(ExitCode::kMissingInput, "--directory {}: there is no such directory on this host",
           options.directory);
    }
  });
  expect_same(communicator, "the program", program_digest(), "install one build on every host");
  const Diagnosis diagnosis = examine(options, communicator);
  if (communicator.rank() == 0) {
    if (options.json) {
      std::cout << nlohmann::json{{"versions", diagnosis.versions},
                                  {"ranks", diagnosis.ranks},
                                  {"operations", diagnosis.times},
                                  {"troubles", diagnosis.troubles}}
                       .dump(2)
                << "\n";
    } else {
      print_text(diagnosis);
    }
  }
  // What would end a run ends this with the same code; the rest only makes it slow.
  for (const RankFacts& rank : diagnosis.ranks) {
    if (rank.disk_code != 0) return static_cast<ExitCode>(rank.disk_code);
  }
  return ExitCode::kOk;
}

}  // namespace

void add_doctor_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<DoctorOptions>();
  CLI::App* command = app.add_subcommand(
      "doctor",
      "Examines hosts, ranks, network and disks as a run would use them; says what looks wrong");
  command
      ->add_option("--directory", options->directory,
                   "Where runs will write: its space and speed are measured")
      ->capture_default_str();
  command->add_option("--largest-bytes", options->largest_bytes, "Of the messages that are timed")
      ->capture_default_str();
  add_device_option(*command, options->device);
  command->add_flag("--json", options->json, "Print everything as JSON");
  command->callback([options, &action] {
    action = [options](dist::Communicator& communicator) { return doctor(*options, communicator); };
  });
}

}  // namespace ttt::launch
