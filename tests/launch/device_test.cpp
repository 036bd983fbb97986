#include "launch/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/device_ops.h"
#include "tests/support/tensors.h"

namespace ttt::launch {
namespace {

const kernels::DeviceOps no_ops;
std::string problem_of_machine;

// A program with CUDA on a machine whose devices cannot be used.
class DeviceChoice : public testing::Test {
 protected:
  DeviceChoice() : communicator_(dist::make_single_communicator()) {
    kernels::set_cuda_backend({&no_ops, [] { return 0; }, [] { return problem_of_machine; },
                               [](int) -> Stream { fail(ExitCode::kUsage, "no device"); }});
  }
  ~DeviceChoice() override { kernels::set_cuda_backend({}); }

  // What opening the stream writes.
  std::string log_of_opening(const std::string& device) {
    testing::internal::CaptureStderr();
    EXPECT_EQ(open_stream(device, DType::kF32, *communicator_).device(), Device::kCpu);
    return testing::internal::GetCapturedStderr();
  }

  std::unique_ptr<dist::Communicator> communicator_;
};

TEST_F(DeviceChoice, AutoIsTheCpuWithoutAWordWhereThereIsNoDevice) {
  problem_of_machine = "";
  EXPECT_EQ(log_of_opening("auto"), "");
}

TEST_F(DeviceChoice, AutoSaysWhyItIsTheCpuWhereThereIsOne) {
  problem_of_machine = "the driver is from last year";
  EXPECT_THAT(log_of_opening("auto"), testing::HasSubstr("the driver is from last year"));
  EXPECT_EQ(log_of_opening("cpu"), "");
}

TEST_F(DeviceChoice, WhoAsksForADeviceGetsTheReason) {
  EXPECT_EQ(test::error_of([&] { (void)open_stream("cuda", DType::kF32, *communicator_); }),
            "no device");
}

}  // namespace
}  // namespace ttt::launch
