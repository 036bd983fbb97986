#include "launch/device.h"

#include <CLI/CLI.hpp>

#include "core/base/log.h"
#include "kernels/device_ops.h"

namespace ttt::launch {

std::string name_of(Device device) { return device == Device::kCpu ? "cpu" : "cuda"; }

Device device_of(const std::string& name, DType dtype) {
  if (name == "cpu") return Device::kCpu;
  if (name != "cuda") fail(ExitCode::kUsage, "--device {}: must be auto, cpu or cuda", name);
  if (dtype == DType::kF64)
    fail(ExitCode::kUsage, "--device cuda: fp64 is computed on the CPU only");
  return Device::kCuda;
}

void add_device_option(CLI::App& command, std::string& device) {
  command.add_option("--device", device, "auto, cpu or cuda")->capture_default_str();
}

Stream open_stream(const std::string& device, DType dtype, const dist::Communicator& communicator) {
  const int num_devices = kernels::num_cuda_devices();
  const bool is_auto = device == "auto";
  if (is_auto && num_devices == 0 && !kernels::cuda_problem().empty()) {
    log::warning("device=cpu although there is a CUDA device: {}", kernels::cuda_problem());
  }
  if (is_auto && (num_devices == 0 || dtype == DType::kF64)) return {};
  if (!is_auto && device_of(device, dtype) == Device::kCpu) return {};
  return another_stream(Device::kCuda, communicator);
}

Stream another_stream(Device device, const dist::Communicator& communicator) {
  if (device == Device::kCpu) return {};
  return kernels::make_stream(device,
                              communicator.local_rank() % std::max(1, kernels::num_cuda_devices()));
}

}  // namespace ttt::launch
