// What is NCCL's own: failures, and what goes by way of the host.

#include "dist/nccl_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nccl.h>

#include <future>

#include "tests/dist/backend.h"

namespace ttt::dist {
namespace {

using testing::HasSubstr;

std::unique_ptr<Communicator> host() { return test::world().split(0, test::world().rank()); }

TEST(NcclCommunicator, FailuresThatNcclReportsLaterAreSeen) {
  std::promise<std::string> reason;
  std::future<std::string> seen = reason.get_future();
  const auto communicator =
      make_nccl_communicator(host(), [&](const std::string& text) { reason.set_value(text); });
  EXPECT_EQ(seen.wait_for(std::chrono::milliseconds(500)), std::future_status::timeout);
  fake_nccl_fails_with(ncclRemoteError);
  EXPECT_EQ(seen.get(), "remote process exited");
  fake_nccl_fails_with(ncclSuccess);
}

TEST(NcclCommunicator, OnlyQueuesItsWork) {
  const auto communicator = make_nccl_communicator(host());
  EXPECT_TRUE(communicator->is_asynchronous());
  Stream stream = test::make_backend_stream();
  const Tensor one({1}, DType::kF32);
  fill(one, 1);
  communicator->all_reduce_sum(one, stream);
  EXPECT_EQ(one.data<float>()[0], 1);
  stream.synchronize();
  EXPECT_EQ(one.data<float>()[0], static_cast<float>(communicator->size()));
}

TEST(NcclCommunicator, WhatIsOnTheHostGoesThroughTheHost) {
  const auto communicator = make_nccl_communicator(host());
  Stream cpu;
  const Tensor one({1}, DType::kF64);
  fill(one, 1);
  communicator->all_reduce_sum(one, cpu);
  EXPECT_EQ(one.data<double>()[0], communicator->size());
  EXPECT_EQ(communicator->gather_strings("x").size(),
            static_cast<std::size_t>(communicator->size()));
}

TEST(NcclCommunicator, SplitsAndDuplicatesAreGroupsOfTheirOwn) {
  Communicator& world = test::world();
  const auto all = make_nccl_communicator(host());
  const auto part = all->split(world.rank() % 2, world.rank());
  EXPECT_EQ(part->size(), (world.size() + 1 - world.rank() % 2) / 2);
  EXPECT_EQ(part->rank(), world.rank() / 2);
  Stream stream = test::make_backend_stream();
  const Tensor sum({1}, DType::kI64);
  sum.data<std::int64_t>()[0] = 1;
  part->all_reduce_sum(sum, stream);
  const auto duplicate = all->duplicate_for_overlap();  // outlives what it has queued
  duplicate->all_reduce_sum(sum, stream);
  stream.synchronize();
  std::int64_t expected = 0;
  for (int r = 0; r < world.size(); ++r) expected += (world.size() + 1 - r % 2) / 2;
  EXPECT_EQ(sum.data<std::int64_t>()[0], expected);
}

TEST(NcclCommunicator, VersionIsReadable) { EXPECT_EQ(nccl_version(), "2.28.9"); }

}  // namespace
}  // namespace ttt::dist
