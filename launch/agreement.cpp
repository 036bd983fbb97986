#include "launch/agreement.h"

#include <algorithm>
#include <charconv>
#include <sstream>

#include "data/files.h"
#include "dist/launch_environment.h"

namespace ttt::launch {
namespace {

std::string describe_rank(std::size_t rank, const std::vector<std::string>& hosts) {
  return fmt::format("rank {} (host {})", rank, hosts[rank]);
}

// The first lines that differ, of two texts that do.
std::pair<std::string, std::string> first_difference(const std::string& a, const std::string& b) {
  std::istringstream a_lines(a);
  std::istringstream b_lines(b);
  std::string a_line;
  std::string b_line;
  do {
    if (!std::getline(a_lines, a_line)) a_line = "(end)";
    if (!std::getline(b_lines, b_line)) b_line = "(end)";
  } while (a_line == b_line);
  const auto trim = [](const std::string& line) {
    return line.substr(std::min(line.find_first_not_of(' '), line.size()));
  };
  return {trim(a_line), trim(b_line)};
}

}  // namespace

void run_together(dist::Communicator& communicator, const std::function<void()>& action) {
  std::string mine;
  try {
    action();
  } catch (const Error& error) {
    mine = fmt::format("{} {}", static_cast<int>(error.code()), error.what());
  }
  const std::vector<std::string> all = communicator.gather_strings(mine);
  const auto failed =
      std::ranges::find_if(all, [](const std::string& text) { return !text.empty(); });
  if (failed == all.end()) return;
  const std::vector<std::string> hosts = communicator.gather_strings(dist::host_name());
  int code = 0;
  std::from_chars(failed->data(), failed->data() + failed->size(), code);
  std::string message = failed->substr(failed->find(' ') + 1);
  if (std::ranges::any_of(all, [&](const std::string& text) { return text != *failed; })) {
    const auto rank = static_cast<std::size_t>(failed - all.begin());
    message = fmt::format("{}: {}", describe_rank(rank, hosts), message);
  }
  throw Error(static_cast<ExitCode>(code), message);
}

void expect_same(dist::Communicator& communicator, const std::string& what, const std::string& text,
                 const std::string& remedy) {
  // Digests first: a large job does not gather thousands of configurations to find that nothing is wrong.
  const std::string digest = data::xxh3_128_hex(std::as_bytes(std::span(text)));
  const std::vector<std::string> digests = communicator.gather_strings(digest);
  const auto other =
      std::ranges::find_if(digests, [&](const std::string& d) { return d != digests.front(); });
  if (other == digests.end()) return;
  const auto rank = static_cast<std::size_t>(other - digests.begin());
  const std::vector<std::string> hosts = communicator.gather_strings(dist::host_name());
  const bool is_shown =
      communicator.rank() == 0 || static_cast<std::size_t>(communicator.rank()) == rank;
  const std::vector<std::string> texts = communicator.gather_strings(is_shown ? text : "");
  const auto [theirs, zeros] = first_difference(texts[rank], texts.front());
  fail(ExitCode::kUsage, "{} is not the same on all ranks: {} has \"{}\", {} has \"{}\"; {}", what,
       describe_rank(rank, hosts), theirs, describe_rank(0, hosts), zeros, remedy);
}

std::string program_digest() { return data::xxh3_128_hex_of_file("/proc/self/exe"); }

}  // namespace ttt::launch
