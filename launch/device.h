#pragma once
// Which device a command computes on.

#include <string>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "dist/communicator.h"

namespace CLI {
class App;
}

namespace ttt::launch {

/// "cpu" or "cuda".
std::string name_of(Device device);
/// The device called "cpu" or "cuda"; fails with kUsage for another name, and for one that does not compute in `dtype`.
Device device_of(const std::string& name, DType dtype);

/// --device auto|cpu|cuda.
void add_device_option(CLI::App& command, std::string& device);

/// The queue of this rank for parameters of `dtype`. auto: CUDA where this program has it, a device is there and computes
/// in `dtype`, else the CPU. Ranks of one machine take its devices in turn. From then on tensors lie where the device and
/// the host both reach them.
Stream open_stream(const std::string& device, DType dtype, const dist::Communicator& communicator);

/// One more queue of this rank on the device that open_stream chose.
Stream another_stream(Device device, const dist::Communicator& communicator);

}  // namespace ttt::launch
