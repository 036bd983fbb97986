#include "launch/replica_check.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "data/files.h"
#include "dist/launch_environment.h"

namespace ttt::launch {
namespace {

std::string digest_of(const TensorView& values) {
  return data::xxh3_128_hex(
      {static_cast<const std::byte*>(values.raw()), static_cast<std::size_t>(values.num_bytes())});
}

}  // namespace

std::vector<std::size_t> odd_ranks(std::span<const std::string> digests) {
  std::map<std::string, std::size_t> counts;
  for (const std::string& digest : digests) ++counts[digest];
  const auto most =
      std::ranges::max_element(counts, {}, [](const auto& entry) { return entry.second; });
  std::vector<std::size_t> odd;
  if (counts.size() < 2) return odd;
  const bool is_majority = 2 * most->second > digests.size();
  for (std::size_t rank = 0; rank < digests.size(); ++rank) {
    if (!is_majority || digests[rank] != most->first) odd.push_back(rank);
  }
  return odd;
}

void check_replicas(const std::vector<ReplicatedTensor>& tensors, std::int64_t step,
                    dist::Communicator& communicator) {
  if (communicator.size() == 1) return;
  std::string all;
  for (const ReplicatedTensor& tensor : tensors) all += digest_of(tensor.values);
  const std::string whole = data::xxh3_128_hex(std::as_bytes(std::span(all)));
  const std::vector<std::string> wholes = communicator.gather_strings(whole);
  if (odd_ranks(wholes).empty()) return;
  constexpr std::size_t kDigits = 32;
  const std::vector<std::string> by_tensor = communicator.gather_strings(all);
  const std::vector<std::string> hosts = communicator.gather_strings(dist::host_name());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    std::vector<std::string> digests;
    digests.reserve(by_tensor.size());
    for (const std::string& text : by_tensor) digests.push_back(text.substr(i * kDigits, kDigits));
    const std::vector<std::size_t> odd = odd_ranks(digests);
    if (odd.empty()) continue;
    std::vector<std::string> names;
    names.reserve(odd.size());
    for (const std::size_t rank : odd) {
      names.push_back(fmt::format("rank {} (host {})", rank, hosts[rank]));
    }
    fail(ExitCode::kReplicasDiffer,
         "replicas differ after step {}: {} on {} is not that of {}; suspect memory or processor "
         "there, exclude the host and resume from the last checkpoint",
         step, tensors[i].name, fmt::join(names, ", "),
         odd.size() == digests.size() ? std::string("any other rank")
                                      : fmt::format("the other {}", digests.size() - odd.size()));
  }
  fail(ExitCode::kInternal, "digests of the whole differ after step {}, those of no tensor do",
       step);
}

}  // namespace ttt::launch
