// Memory and queues of kernels/cuda/device.cpp over a runtime of the tests (tests/support/cudart).

#include "core/base/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/ops.h"
#include "tests/support/cudart/fake_cudart.h"
#include "tests/support/tensors.h"

namespace ttt::kernels::cuda {
namespace {

using memory::Place;
using test::error_of;
using test::fake_device;
using testing::HasSubstr;

constexpr memory::Purpose kActivations{"activations", "lower train.micro_batch_size"};
constexpr std::int64_t kBlock = 64 << 10;  // 16 of them are the device's memory

class CudaMemory : public testing::Test {
 protected:
  CudaMemory() : stream_(make_stream(0)) {}
  ~CudaMemory() override {
    tensors_.clear();
    fake_device().allocation = fake_device().work = cudaSuccess;
    memory::set_block_sources({});
  }

  // Blocks until the device has no more; what is said then.
  std::string fill(Place place, ExitCode& code) {
    const memory::Scope scope(kActivations, place);
    return error_of(
        [&] {
          for (;;) tensors_.emplace_back(Shape{kBlock}, DType::kU8);
        },
        &code);
  }

  Stream stream_;
  std::vector<Tensor> tensors_;
};

TEST_F(CudaMemory, WhatTheDeviceHasNotGotIsToldWithWhatUsesMost) {
  ExitCode code = ExitCode::kOk;
  const std::string error = fill(Place::kDevice, code);
  EXPECT_EQ(code, ExitCode::kOutOfMemory);
  EXPECT_THAT(error, HasSubstr("out of memory: 65536 bytes asked for (activations)"));
  EXPECT_THAT(error, HasSubstr("To need less, lower train.micro_batch_size"));
}

// Managed memory that the device has not got would move at every use; and the libraries need some too.
TEST_F(CudaMemory, ManagedAndPlainMemoryTogetherLeaveSomeToTheLibraries) {
  const memory::Scope scope(kActivations, Place::kShared);
  for (int i = 0; i < 8; ++i) tensors_.emplace_back(Shape{kBlock}, DType::kU8);
  ExitCode code = ExitCode::kOk;
  fill(Place::kDevice, code);
  EXPECT_EQ(fake_device().managed_bytes, 8 * kBlock);
  EXPECT_EQ(fake_device().device_bytes, 7 * kBlock);
  EXPECT_NE(fill(Place::kShared, code), "");
  tensors_.pop_back();  // a freed block serves again
  tensors_.emplace_back(Shape{kBlock}, DType::kU8);
}

TEST_F(CudaMemory, BlocksOfOtherSizesAreGivenBackBeforeItFails) {
  ExitCode code = ExitCode::kOk;
  fill(Place::kDevice, code);
  tensors_.clear();
  const memory::Scope scope(kActivations, Place::kDevice);
  const Tensor large({12 * kBlock}, DType::kU8);
  EXPECT_EQ(fake_device().device_bytes, 12 * kBlock);
}

TEST_F(CudaMemory, ADeviceThatRefusesIsOutOfMemory) {
  fake_device().allocation = cudaErrorMemoryAllocation;
  for (const Place place : {Place::kShared, Place::kDevice, Place::kPinned}) {
    ExitCode code = ExitCode::kOk;
    EXPECT_THAT(fill(place, code), HasSubstr("out of memory"));
    EXPECT_EQ(code, ExitCode::kOutOfMemory);
    EXPECT_EQ(fake_device().last_error, cudaSuccess) << "it would be reported again";
  }
}

TEST_F(CudaMemory, ADeviceThatIsLostMeanwhileIsAPeerLost) {
  const Stream::Event event = stream_.record();
  fake_device().work = cudaErrorECCUncorrectable;
  for (const auto& wait : {std::function<void()>([&] { stream_.synchronize(); }),
                           std::function<void()>([&] { event.wait(); })}) {
    ExitCode code = ExitCode::kOk;
    EXPECT_THAT(error_of(wait, &code), HasSubstr("a kernel: the device is lost: "));
    EXPECT_EQ(code, ExitCode::kPeerLost);
  }
  fake_device().allocation = cudaErrorECCUncorrectable;
  ExitCode code = ExitCode::kOk;
  EXPECT_THAT(fill(Place::kDevice, code), HasSubstr("memory: the device is lost"));
  EXPECT_EQ(code, ExitCode::kPeerLost);
}

TEST_F(CudaMemory, ZerosAreTheDevicesAndThereAtOnce) {
  for (const Place place : {Place::kShared, Place::kDevice, Place::kPinned}) {
    const memory::Scope scope(kActivations, place);
    { std::ranges::fill(Tensor({100}, DType::kU8).span<std::uint8_t>(), 1); }  // the same block
    const std::int64_t before = fake_device().cleared_bytes;
    const Tensor zeros = Tensor::zeros({100}, DType::kU8);
    EXPECT_THAT(zeros.span<std::uint8_t>(), testing::Each(0));
    EXPECT_EQ(fake_device().cleared_bytes - before, place == Place::kPinned ? 0 : 100);
  }
}

TEST_F(CudaMemory, ADeviceThatIsLostWhileItZeroesIsAPeerLost) {
  const memory::Scope scope(kActivations, Place::kDevice);
  const std::int64_t live = memory::live_bytes();
  fake_device().work = cudaErrorECCUncorrectable;
  ExitCode code = ExitCode::kOk;
  EXPECT_THAT(error_of([] { (void)Tensor::zeros({100}, DType::kU8); }, &code),
              HasSubstr("zeroing memory: the device is lost: "));
  EXPECT_EQ(code, ExitCode::kPeerLost);
  EXPECT_EQ(memory::live_bytes(), live);
}

TEST(CudaManagedMemory, ThatTheHostMustNotTouchMeanwhileIsTold) {
  testing::internal::CaptureStderr();
  (void)make_stream(0);
  fake_device().has_concurrent_managed_access = false;
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  testing::internal::CaptureStderr();
  (void)make_stream(0);
  (void)make_stream(0);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_THAT(said, HasSubstr("managed_memory=exclusive"));
  EXPECT_EQ(said.find("managed_memory"), said.rfind("managed_memory"));
  fake_device().has_concurrent_managed_access = true;
}

}  // namespace
}  // namespace ttt::kernels::cuda
