#pragma once
// The communicator under test: MPI's, or with TTT_TEST_NCCL the one over a fake NCCL and a device that does its work late.

#include <memory>

#include "tests/support/mpi_world.h"
#ifdef TTT_TEST_NCCL
#include "dist/nccl_communicator.h"
#include "kernels/device_ops.h"
#include "tests/support/lazy_device.h"
#endif

namespace ttt::test {

#ifdef TTT_TEST_NCCL
inline Stream make_backend_stream(bool is_eager = false) {
  static const bool once = (use_lazy_device(), true);
  (void)once;
  return kernels::make_stream(Device::kCuda, is_eager ? 1 : 0);
}
/// The ranks of one color; collective over the world.
inline std::unique_ptr<dist::Communicator> make_backend(int color) {
  return dist::make_nccl_communicator(world().split(color, world().rank()));
}
#else
inline Stream make_backend_stream(bool /*is_eager*/ = false) { return {}; }
inline std::unique_ptr<dist::Communicator> make_backend(int color) {
  return world().split(color, world().rank());
}
#endif

}  // namespace ttt::test
