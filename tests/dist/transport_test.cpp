#include "dist/transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/mpi_world.h"

namespace ttt::dist {
namespace {

using testing::HasSubstr;

TEST(Transport, NcclNeedsADeviceForEveryRank) {
  EXPECT_EQ(choose_transport({"a 0", "a 1", "b 0"}, true).transport, Transport::kNccl);
  EXPECT_EQ(choose_transport({"a 0", "a 1"}, false).transport, Transport::kMpi);
  EXPECT_EQ(choose_transport({"a 0"}, true).transport, Transport::kMpi);
  EXPECT_EQ(choose_transport({"", ""}, true).transport, Transport::kMpi);
  const TransportChoice shared = choose_transport({"a 0", "a 1", "b 0", "a 1"}, true);
  EXPECT_EQ(shared.transport, Transport::kMpi);
  EXPECT_THAT(shared.reason, HasSubstr("ranks 1 and 3 share device a 1"));
}

TEST(Transport, AMixtureOfDevicesIsRefused) {
  const auto message_of = [](const std::vector<std::string>& devices) -> std::string {
    try {
      choose_transport(devices, true);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(message_of({"a 0", "", "b 0"}),
              HasSubstr("rank 1 computes on the CPU, rank 0 on a CUDA device"));
  EXPECT_THAT(message_of({"", "", "b 0"}),
              HasSubstr("rank 0 computes on the CPU, rank 2 on a CUDA device"));
}

TEST(Transport, OnCpusTheWorldItselfIsRight) {
  EXPECT_EQ(make_device_communicator(test::world(), Stream()), nullptr);
}

}  // namespace
}  // namespace ttt::dist
