#pragma once
// A communicator for tensors of CUDA devices, one rank a device. NCCL moves what is on a CUDA stream, in the order of the
// stream and without waiting; what is on the CPU, strings and barriers go through the host's communicator.
//
// Numerics: as dist/communicator.h; the order of a sum is NCCL's, which may change with its version and the machine.
//   dist/tree_collectives.h uses messages only, whose bits do not.
// Errors: kPeerLost when NCCL reports that another rank or the network failed, kInternal for misuse; messages between two
//   ranks must have the length that both expect, which NCCL does not check. What fails after a call has returned is
//   seen by a thread that asks NCCL and ends all ranks, since the stream would wait for ever.

#include <functional>
#include <memory>
#include <string>

#include "dist/communicator.h"

namespace ttt::dist {

/// Takes `host` over, whose ranks it has; this rank's device must be the current one. `on_failure` is called on a
/// thread with what NCCL reports; by default it logs and aborts all ranks. Collective.
std::unique_ptr<Communicator> make_nccl_communicator(
    std::unique_ptr<Communicator> host,
    std::function<void(const std::string&)> on_failure = nullptr);

/// "2.28.9"
std::string nccl_version();

}  // namespace ttt::dist
