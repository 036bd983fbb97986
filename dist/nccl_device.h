#pragma once
// The device that NCCL would use. Apart from the communicator, which tests run without the CUDA runtime.

#include <string>

namespace ttt::dist {

/// "0000:3b:00.0": the same for the same device in all processes of a host.
std::string current_device_bus();

}  // namespace ttt::dist
