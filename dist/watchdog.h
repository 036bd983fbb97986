#pragma once
// Ends a job that hangs, and says why: a thread on every rank sends what its rank does to rank 0, once a
// second, by UDP. A rank that is not heard of (dead, stopped, or its host cut off) or that makes no
// progress is named in one line on rank 0, every rank writes its flight record and exits with
// kPeerLost; what is left the launcher ends. Rank 0 itself is watched by the others.
//
// The thread calls no MPI and no CUDA, which may be what hangs; therefore no MPI_Abort either.
//
// Errors: kIo when there is no socket.

#include <array>
#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/base/error.h"
#include "dist/communicator.h"
#include "dist/datagrams.h"
#include "dist/flight_record.h"

namespace ttt::dist {

struct WatchdogOptions {
  double silence_seconds = 60;                     // without hearing of a rank; 0: not watched
  std::array<double, kNumPhases> phase_seconds{};  // without progress in a Phase; 0: no limit
  std::string directory;                           // for flight records; empty: none written
};

/// What rank 0 knows of one rank.
struct RankReport {
  FlightRecord::Activity activity;
  double silent_seconds = 0;
};

/// The line that names who keeps the job from going on, or "" when nothing is wrong: ranks that are
/// silent; else the one that waits for no other, once it makes no progress for too long.
std::string find_culprit(std::span<const RankReport> ranks, std::span<const std::string> hosts,
                         const WatchdogOptions& options);

/// Ends this process with `code` after `seconds`, whatever hangs meanwhile.
void exit_within(double seconds, ExitCode code);

class Watchdog {
 public:
  /// Collective: the thread starts when something is to be watched and there is more than one rank.
  /// `world` must outlive this.
  Watchdog(Communicator& world, const WatchdogOptions& options);
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  /// Stops watching. Before it an orderly end calls `finish`.
  ~Watchdog();

  /// What `world` writes to meanwhile, and the run its phases.
  [[nodiscard]] FlightRecord& record() { return record_; }

  /// Collective: from here on no rank misses another.
  void finish();

 private:
  void watch();
  void judge_ranks();          // rank 0
  void report_to_rank_zero();  // the others
  void receive_reports(double seconds);
  void receive_answers(double seconds);
  /// Silence while this very process was suspended is nobody's fault.
  void forgive_suspension();
  void stop();
  [[noreturn]] void end_job(const std::string& line);
  void write_record() const;

  struct Peer {
    FlightRecord::Activity activity;
    Timer heard;
    Address address;  // port 0: not known yet
    bool was_warned = false;
  };

  Communicator& world_;
  WatchdogOptions options_;
  FlightRecord record_;
  double interval_seconds_ = 1;
  std::uint64_t job_ = 0;  // a random number: other jobs' datagrams are not ours
  std::vector<std::string> hosts_;
  std::vector<Address> rank_zero_;  // where it may be
  std::unique_ptr<DatagramSocket> socket_;
  std::vector<Peer> peers_;  // by rank; not on rank 0: only [0]
  Timer tick_;
  std::atomic<bool> stops_ = false;
  std::thread thread_;
};

}  // namespace ttt::dist
