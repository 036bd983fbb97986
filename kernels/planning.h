#pragma once
// A device on which the program runs without computing: every op notes what it would do and allocates what it would
// allocate, in memory that exists as addresses only. So one step of the real program tells, before the first real one,
// the memory it needs (memory::peak_bytes) and the work it consists of.
//
//   PlanningTrace trace; AddressSpace space; Stream stream = make_planning_stream({Device::kCuda}, trace);
//   model.forward_backward(..., context of stream);   // trace.calls, memory::peak_bytes()
//
// Dims: those of the ops.
// Numerics: none; none.
// Errors: host code that reads or writes a tensor's elements ends the program: nothing is there.
//   AddressSpace: kInternal while tensors are alive.
// Source: none. Exact: every tensor of the program, what forward keeps for backward, and the workspaces that grow with
//   tokens or with the vocabulary. Left out: tables, partial sums and tiles, which do not;
//   tests/launch/memory_plan_test.cpp says how much that is.

#include <functional>
#include <string>
#include <vector>

#include "core/base/memory.h"
#include "core/base/stream.h"

namespace ttt::kernels {

struct DeviceOps;

/// What bounds an op's time.
enum class WorkKind { kMatmul, kInnerLoop, kAttention, kMemory };

/// One call of an op.
struct OpCall {
  const char* op = nullptr;  // its name in TTT_DEVICE_OPS
  WorkKind kind = WorkKind::kMemory;
  double flops = 0;  // of products; a multiply-add counts two
  double bytes = 0;  // of its operands, each read or written once
  // kInnerLoop: independent (batch, head) pairs, and the mini-batches that each takes one after the other.
  double pairs = 0;
  double serial_steps = 0;
  bool is_mlp = false;
  bool is_backward = false;
  std::string shapes;  // of its operands: calls of one op and equal shapes cost the same
  /// Allocates operands of these shapes and returns the call on a real stream, for measuring.
  std::function<std::function<void()>(Stream&)> prepare;
};

struct PlanningTrace {
  std::vector<OpCall> calls;
  /// Bytes in live tensors when the loss was reached: from here on backward uses up what forward kept.
  std::int64_t live_at_loss = 0;
};

/// The device that is stood for.
struct PlannedDevice {
  Device device = Device::kCpu;
  int compute_capability = 90;  // kCuda: 90 for 9.0; says whether the fused TTT kernels serve
};

/// `trace` must outlive the stream.
Stream make_planning_stream(const PlannedDevice& device, PlanningTrace& trace);

/// The table that device_ops returns for such streams.
const DeviceOps& planning_ops();

/// While it lives tensors get addresses without memory. No tensor may be alive at either end.
class AddressSpace {
 public:
  AddressSpace();
  AddressSpace(const AddressSpace&) = delete;
  AddressSpace& operator=(const AddressSpace&) = delete;
  ~AddressSpace();

 private:
  memory::BlockSources previous_;
};

/// What the libraries of a device take besides tensors: cuBLASLt's workspace.
std::int64_t library_workspace_bytes(Device device);

}  // namespace ttt::kernels
