#include "kernels/cuda/ops.h"
#include "kernels/planning/noted_op.h"

namespace ttt::kernels {
namespace {

// Addresses that no processor maps: whoever forgets that nothing is there is stopped at once.
std::byte* next_address(std::int64_t bytes) {
  static std::uintptr_t next = std::uintptr_t{1} << 60U;
  const std::uintptr_t address = next;
  next += static_cast<std::uintptr_t>(bytes);
  return reinterpret_cast<std::byte*>(address);
}
void forget_address(std::byte* /*block*/) {}

}  // namespace

Stream make_planning_stream(const PlannedDevice& device, PlanningTrace& trace) {
  return Stream(std::make_unique<planning::PlanningQueue>(device, trace));
}

AddressSpace::AddressSpace()
    : previous_(
          memory::set_block_sources({{&next_address, &forget_address, nullptr, true}, {}, {}})) {}

AddressSpace::~AddressSpace() { memory::set_block_sources(previous_); }

std::int64_t library_workspace_bytes(Device device) {
  return device == Device::kCuda ? cuda::kProductWorkspaceBytes : 0;
}

}  // namespace ttt::kernels
