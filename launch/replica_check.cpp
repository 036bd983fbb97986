#include "launch/replica_check.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "core/base/memory.h"
#include "data/files.h"
#include "dist/launch_environment.h"
#include "kernels/copy.h"

namespace ttt::launch {
namespace {

std::span<const std::byte> bytes_of(const TensorView& values) {
  return {static_cast<const std::byte*>(values.raw()),
          static_cast<std::size_t>(values.num_bytes())};
}

}  // namespace

// What a device has comes in pieces, by copies: touched where it lies, it would move to the host page by page, and back.
std::string replica_digest(const TensorView& values, Stream& stream) {
  constexpr std::int64_t kPiece = std::int64_t{1} << 23;  // elements
  if (stream.device() == Device::kCpu) return data::xxh3_128_hex(bytes_of(values));
  const memory::Scope scope({"comparing replicas"}, memory::Place::kPinned);
  const TensorView all = values.reshape({values.numel()});
  const Tensor buffer({std::min(kPiece, all.numel())}, all.dtype());
  data::Xxh3Digest digest;
  for (std::int64_t begin = 0; begin < all.numel(); begin += kPiece) {
    const std::int64_t count = std::min(kPiece, all.numel() - begin);
    const TensorView piece = buffer.view().slice(0, count);
    kernels::copy(all.slice(begin, begin + count), piece, stream);
    stream.synchronize();
    digest.update(bytes_of(piece));
  }
  return digest.hex();
}

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
                    dist::Communicator& communicator, Stream& stream) {
  if (communicator.size() == 1) return;
  std::string all;
  for (const ReplicatedTensor& tensor : tensors) all += replica_digest(tensor.values, stream);
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
