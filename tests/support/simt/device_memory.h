#pragma once
// Memory of the emulated device: pages that are there while a kernel runs and nowhere else, so that host code which
// reads or writes what belongs to the device ends the program (SIGSEGV), as it would on a device. Pinned memory is there
// all the time but during a capture. A block that was given back is never there again.

#include <cstddef>
#include <cstdint>

namespace ttt::simt {

std::byte* allocate_device(std::int64_t bytes);
void release_device(std::byte* block);
void clear_device(std::byte* block, std::int64_t bytes);
std::byte* allocate_pinned(std::int64_t bytes);
void release_pinned(std::byte* block);

/// While one lives, the device's memory can be reached.
class DeviceAccess {
 public:
  DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
  ~DeviceAccess();
};

void close_pinned(bool is_closed);

}  // namespace ttt::simt
