#include "dist/watchdog.h"

#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <random>

#include "core/base/log.h"
#include "dist/launch_environment.h"

namespace ttt::dist {
namespace {

// All ranks run the same binary on the same kind of machine: these travel as they lie in memory.
struct Report {
  std::uint64_t job = 0;
  std::int64_t rank = 0;
  FlightRecord::Activity activity;
};

struct Answer {
  std::uint64_t job = 0;
  std::array<char, 600> line{};  // why the job ends; empty: go on
};

template <typename T>
std::span<const std::byte> bytes_of(const T& message) {
  return std::as_bytes(std::span(&message, 1));
}

void sleep_for(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

std::string describe(const std::vector<std::size_t>& ranks, std::span<const std::string> hosts) {
  constexpr std::size_t kMostNamed = 8;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < std::min(ranks.size(), kMostNamed); ++i) {
    names.push_back(fmt::format("rank {} (host {})", ranks[i], hosts[ranks[i]]));
  }
  std::string text = fmt::format("{}", fmt::join(names, ", "));
  if (ranks.size() > kMostNamed) text += fmt::format(" and {} more", ranks.size() - kMostNamed);
  return text;
}

std::string silence_line(const std::vector<std::size_t>& ranks, std::span<const std::string> hosts,
                         double seconds, double limit) {
  return fmt::format("{} silent for {:.1f} s (limit {:g} s): stopped, dead, or the host is cut off",
                     describe(ranks, hosts), seconds, limit);
}

double tick_seconds(const WatchdogOptions& options) {
  double shortest = 10;
  for (const double limit : options.phase_seconds) {
    if (limit > 0) shortest = std::min(shortest, limit);
  }
  if (options.silence_seconds > 0) shortest = std::min(shortest, options.silence_seconds);
  return std::max(0.05, shortest / 10);
}

// Rank 0's addresses and the job's number travel with the names of the hosts.
std::string introduction(std::uint64_t job, const std::vector<Address>& addresses) {
  std::string text = fmt::format("{} {}", host_name(), job);
  for (const Address& address : addresses) {
    text += fmt::format(" {} {}", address.host, address.port);
  }
  return text;
}

}  // namespace

std::string find_culprit(std::span<const RankReport> ranks, std::span<const std::string> hosts,
                         const WatchdogOptions& options) {
  std::vector<std::size_t> silent;
  double longest = 0;
  for (std::size_t r = 0; options.silence_seconds > 0 && r < ranks.size(); ++r) {
    if (ranks[r].silent_seconds <= options.silence_seconds) continue;
    silent.push_back(r);
    longest = std::max(longest, ranks[r].silent_seconds);
  }
  if (!silent.empty()) return silence_line(silent, hosts, longest, options.silence_seconds);

  const auto limit = [&](const RankReport& rank) {
    return options.phase_seconds.at(static_cast<std::size_t>(rank.activity.phase));
  };
  // Who waits in an operation waits for somebody else. If all do, the one that began the fewest is behind.
  const auto is_behind = [](const RankReport& a, const RankReport& b) {
    const bool a_waits = a.activity.operation != Operation::kNone;
    const bool b_waits = b.activity.operation != Operation::kNone;
    if (a_waits != b_waits) return b_waits;
    if (a_waits) return a.activity.num_operations < b.activity.num_operations;
    return a.activity.stuck_seconds > b.activity.stuck_seconds;
  };
  const auto culprit = std::ranges::min_element(ranks, is_behind);
  // While it gets on, the others wait for good reason.
  if (limit(*culprit) <= 0 || culprit->activity.stuck_seconds <= limit(*culprit)) return {};
  const auto rank = static_cast<std::size_t>(culprit - ranks.begin());
  const FlightRecord::Activity& activity = culprit->activity;
  const auto waiting = std::ranges::count_if(
      ranks, [](const RankReport& other) { return other.activity.operation != Operation::kNone; });
  if (activity.operation == Operation::kNone) {
    return fmt::format(
        "{} makes no progress in phase {} for {:.1f} s (limit {:g} s), after {} operations; {} of "
        "{} ranks wait in an operation",
        describe({rank}, hosts), name_of(activity.phase), activity.stuck_seconds, limit(*culprit),
        activity.num_operations, waiting, ranks.size());
  }
  return fmt::format(
      "every rank waits in an operation for {:.1f} s (limit {:g} s): the transport is stuck or the "
      "ranks call different operations; furthest behind is {}, phase {}, in {}, its number {}",
      activity.stuck_seconds, limit(*culprit), describe({rank}, hosts), name_of(activity.phase),
      name_of(activity.operation), activity.num_operations);
}

void exit_within(double seconds, ExitCode code) {
  std::thread([seconds, code] {
    sleep_for(seconds);
    _exit(static_cast<int>(code));
  }).detach();
}

Watchdog::Watchdog(Communicator& world, const WatchdogOptions& options)
    : world_(world), options_(options), interval_seconds_(tick_seconds(options)) {
  world.set_record(&record_);
  const bool watches = options.silence_seconds > 0 ||
                       std::ranges::any_of(options.phase_seconds, [](double s) { return s > 0; });
  if (!watches || world.size() == 1) return;
  socket_ = std::make_unique<DatagramSocket>();
  if (world.rank() == 0)
    job_ = std::random_device()() | std::uint64_t{std::random_device()()} << 32U;
  const std::vector<std::string> all = world.gather_strings(
      introduction(job_, world.rank() == 0 ? socket_->addresses() : std::vector<Address>()));
  for (const std::string& text : all) hosts_.push_back(text.substr(0, text.find(' ')));
  std::istringstream first(all.front());
  std::string name;
  first >> name >> job_;
  for (Address address; first >> address.host >> address.port;) rank_zero_.push_back(address);
  peers_.resize(world.rank() == 0 ? all.size() : 1);
  thread_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() {
  stop();
  world_.set_record(nullptr);
}

void Watchdog::finish() {
  world_.barrier();
  stop();
}

void Watchdog::stop() {
  if (!thread_.joinable()) return;
  stops_ = true;
  socket_->wake();
  thread_.join();
}

void Watchdog::watch() {
  tick_.restart();
  while (!stops_) {
    forgive_suspension();
    tick_.restart();
    if (world_.rank() == 0) {
      judge_ranks();
    } else {
      report_to_rank_zero();
    }
    for (double left = interval_seconds_; left > 0 && !stops_;
         left = interval_seconds_ - tick_.seconds()) {
      if (world_.rank() == 0) {
        receive_reports(left);
      } else {
        receive_answers(left);
      }
    }
  }
}

void Watchdog::forgive_suspension() {
  const double longest = std::max(10 * interval_seconds_, options_.silence_seconds) / 2;
  if (tick_.seconds() < longest) return;
  for (Peer& peer : peers_) {
    peer.heard.restart();
    peer.activity.stuck_seconds = 0;
  }
  record_.mark_progress();
  log::warning("event=suspended seconds={:.1f}", tick_.seconds());
}

void Watchdog::judge_ranks() {
  std::vector<RankReport> reports;
  for (Peer& peer : peers_) {
    const bool is_mine = reports.empty();
    const double silent = is_mine ? 0 : peer.heard.seconds();
    reports.push_back({is_mine ? record_.activity() : peer.activity, silent});
    if (options_.silence_seconds > 0 && silent > options_.silence_seconds / 2 && !peer.was_warned) {
      peer.was_warned = true;
      log::warning("{}",
                   silence_line({reports.size() - 1}, hosts_, silent, options_.silence_seconds));
    }
  }
  const std::string line = find_culprit(reports, hosts_, options_);
  if (line.empty()) return;
  exit_within(5, ExitCode::kPeerLost);
  Answer answer;
  answer.job = job_;
  line.copy(answer.line.data(), answer.line.size() - 1);
  for (int repeat = 0; repeat < 3; ++repeat) {  // a datagram may get lost
    for (const Peer& peer : peers_) {
      if (peer.address.port != 0) socket_->send(bytes_of(answer), peer.address);
    }
    sleep_for(0.05);
  }
  end_job(line);
}

void Watchdog::report_to_rank_zero() {
  const Peer& zero = peers_.front();
  const Report report{job_, world_.rank(), record_.activity()};
  // The address that answered, as long as it does.
  if (zero.address.port != 0 && zero.heard.seconds() < 5 * interval_seconds_) {
    socket_->send(bytes_of(report), zero.address);
  } else {
    for (const Address& address : rank_zero_) socket_->send(bytes_of(report), address);
  }
  // Rank 1 speaks for all; the others give its exit time to end them.
  const double silent = zero.heard.seconds();
  const double patience = world_.rank() == 1 ? 0.0 : 2.0;
  if (options_.silence_seconds > 0 && silent > options_.silence_seconds + patience) {
    exit_within(5, ExitCode::kPeerLost);
    end_job(silence_line({0}, hosts_, silent, options_.silence_seconds));
  }
}

void Watchdog::receive_reports(double seconds) {
  Report report;
  Address from;
  if (!socket_->receive(std::as_writable_bytes(std::span(&report, 1)), from, seconds)) return;
  if (report.job != job_ || report.rank < 1 || report.rank >= world_.size()) return;
  Peer& peer = peers_.at(static_cast<std::size_t>(report.rank));
  peer.activity = report.activity;
  peer.address = from;
  peer.heard.restart();
  peer.was_warned = false;
  Answer answer;
  answer.job = job_;
  socket_->send(bytes_of(answer), from);
}

void Watchdog::receive_answers(double seconds) {
  Answer answer;
  Address from;
  if (!socket_->receive(std::as_writable_bytes(std::span(&answer, 1)), from, seconds)) return;
  if (answer.job != job_) return;
  Peer& zero = peers_.front();
  zero.address = from;
  zero.heard.restart();
  if (answer.line.front() == '\0') return;
  exit_within(5, ExitCode::kPeerLost);
  log::info("event=hang {}", answer.line.data());
  write_record();
  sleep_for(1);  // let the rank that spoke leave first
  _exit(static_cast<int>(ExitCode::kPeerLost));
}

void Watchdog::end_job(const std::string& line) {
  log::error("event=hang {}", line);
  write_record();
  sleep_for(0.2);  // the others write theirs before the launcher ends them
  _exit(static_cast<int>(ExitCode::kPeerLost));
}

void Watchdog::write_record() const {
  if (options_.directory.empty()) return;
  std::ofstream(fmt::format("{}/flight_{:05d}.txt", options_.directory, world_.rank()))
      << record_.text();
}

}  // namespace ttt::dist
