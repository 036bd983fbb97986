#include "tests/bench/sequence/sleeping_device.h"

#include <chrono>
#include <memory>
#include <thread>

#include "kernels/device_ops.h"

namespace ttt::bench {
namespace {

double seconds_of_row = 0;

void sleep(double rows) {
  std::this_thread::sleep_for(std::chrono::duration<double>(rows * seconds_of_row));
}

class Queue final : public DeviceQueue {
 public:
  void synchronize() override {}
  std::unique_ptr<QueueEvent> record() override { return nullptr; }
  void wait_for(QueueEvent& /*event*/) override {}
  [[nodiscard]] void* native() const override { return nullptr; }
};

template <typename Result, typename... Arguments>
Result nothing(Arguments... /*unused*/) {
  return Result();
}

void ttt_forward(const kernels::TttInputs& inputs, const kernels::TttOptions& /*options*/,
                 const kernels::TttState& /*initial*/, TensorView /*out*/,
                 const kernels::TttState& /*final_state*/, kernels::TttSaved* /*saved*/,
                 Stream& /*stream*/) {
  sleep(static_cast<double>(inputs.q.size(0)));
}

void ttt_backward(const kernels::TttInputs& inputs, const kernels::TttOptions& /*options*/,
                  const kernels::TttState& /*initial*/, const kernels::TttSaved& /*saved*/,
                  TensorView /*d_out*/, const kernels::TttState& /*d_final*/,
                  const kernels::TttInputGradients& /*gradients*/,
                  const kernels::TttState& /*d_initial*/, Stream& /*stream*/) {
  sleep(2 * static_cast<double>(inputs.q.size(0)));
}

const kernels::DeviceOps kOps = [] {
  kernels::DeviceOps ops;
#define TTT_NOTHING(op) ops.op = &nothing;
  TTT_DEVICE_OPS(TTT_NOTHING)
#undef TTT_NOTHING
  ops.ttt_forward = &ttt_forward;
  ops.ttt_backward = &ttt_backward;
  return ops;
}();

}  // namespace

Stream make_sleeping_stream(double seconds) {
  seconds_of_row = seconds;
  kernels::CudaBackend backend;
  backend.ops = &kOps;
  backend.num_devices = [] { return 1; };
  backend.make_stream = [](int /*device*/) { return Stream(std::make_unique<Queue>()); };
  kernels::set_cuda_backend(backend);
  return kernels::make_stream(Device::kCuda, 0);
}

}  // namespace ttt::bench
