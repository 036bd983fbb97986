#include "dist/transport.h"

#include <algorithm>
#include <map>

#include "core/base/log.h"
#include "dist/launch_environment.h"
#ifdef TTT_NCCL
#include "dist/nccl_communicator.h"
#include "dist/nccl_device.h"
#endif

namespace ttt::dist {
namespace {

#ifdef TTT_NCCL
constexpr bool kHasNccl = true;
#else
constexpr bool kHasNccl = false;
#endif

/// Host and bus: the number of a device depends on what the launcher shows of them.
std::string name_of_device([[maybe_unused]] const Stream& stream) {
  if (stream.device() == Device::kCpu) return {};
#ifdef TTT_NCCL
  return fmt::format("{} {}", host_name(), current_device_bus());
#else
  return "the emulator";
#endif
}

}  // namespace

TransportChoice choose_transport(const std::vector<std::string>& devices, bool has_nccl) {
  std::map<std::string, std::size_t> rank_of;
  std::string shared;
  for (std::size_t rank = 0; rank < devices.size(); ++rank) {
    if (devices[rank].empty() != devices[0].empty()) {
      const std::size_t on_cpu = devices[rank].empty() ? rank : 0;
      fail(ExitCode::kUsage,
           "rank {} computes on the CPU, rank {} on a CUDA device: use --device cpu, or give every "
           "rank a device",
           on_cpu, on_cpu == 0 ? rank : 0);
    }
    const auto [first, is_new] = rank_of.emplace(devices[rank], rank);
    if (!is_new && shared.empty()) {
      shared = fmt::format("ranks {} and {} share device {}", first->second, rank, devices[rank]);
    }
  }
  if (devices.size() == 1) return {Transport::kMpi, "one rank"};
  if (devices[0].empty()) return {Transport::kMpi, "ranks compute on CPUs"};
  if (!has_nccl) return {Transport::kMpi, "built without NCCL"};
  if (!shared.empty()) return {Transport::kMpi, shared + ", which NCCL does not allow"};
  return {Transport::kNccl, "every rank has a device"};
}

std::unique_ptr<Communicator> make_device_communicator(Communicator& world, const Stream& stream) {
  const TransportChoice choice =
      choose_transport(world.gather_strings(name_of_device(stream)), kHasNccl);
  if (stream.device() == Device::kCpu || world.size() == 1) return nullptr;
  if (world.rank() == 0) {
    log::info("transport={} reason=\"{}\"", choice.transport == Transport::kNccl ? "nccl" : "mpi",
              choice.reason);
  }
#ifdef TTT_NCCL
  if (choice.transport == Transport::kNccl) {
    if (world.rank() == 0) log::info("nccl_version={}", nccl_version());
    return make_nccl_communicator(world.split(0, world.rank()));
  }
#endif
  return nullptr;
}

}  // namespace ttt::dist
