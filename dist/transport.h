#pragma once
// What carries the tensors of CUDA devices from rank to rank: NCCL where every rank has a device of its own, else MPI, which
// waits for the stream and reads the memory that host and device share.

#include <memory>
#include <string>
#include <vector>

#include "core/base/stream.h"
#include "dist/communicator.h"

namespace ttt::dist {

enum class Transport { kMpi, kNccl };

struct TransportChoice {
  Transport transport = Transport::kMpi;
  std::string reason;  // for people
};

/// `devices[r]` names rank r's device, the same name for the same device; empty: it computes on the CPU. Throws kUsage
/// when some ranks have a device and others none.
TransportChoice choose_transport(const std::vector<std::string>& devices, bool has_nccl);

/// A communicator with the ranks of `world` for tensors on streams of `stream`'s device, and its choice in the log; null
/// when `world` itself is right. Collective.
std::unique_ptr<Communicator> make_device_communicator(Communicator& world, const Stream& stream);

}  // namespace ttt::dist
