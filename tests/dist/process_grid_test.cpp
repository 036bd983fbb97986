#include "dist/process_grid.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "core/base/timer.h"
#include "tests/support/mpi_world.h"

namespace ttt::dist {
namespace {

using testing::HasSubstr;

TEST(ProcessGrid, SequenceRanksAreAdjacent) {
  Communicator& world = test::world();
  for (int sequence_ranks = 1; sequence_ranks <= world.size(); ++sequence_ranks) {
    if (world.size() % sequence_ranks != 0) continue;
    const ProcessGrid grid(world, sequence_ranks);
    EXPECT_EQ(grid.sequence().size(), sequence_ranks);
    EXPECT_EQ(grid.data().size(), world.size() / sequence_ranks);
    EXPECT_EQ(grid.data().rank() * sequence_ranks + grid.sequence().rank(), world.rank());
    const auto group = grid.sequence().gather_strings(std::to_string(world.rank()));
    const auto peers = grid.data().gather_strings(std::to_string(world.rank()));
    for (int s = 0; s < sequence_ranks; ++s) {
      EXPECT_EQ(group[s], std::to_string(grid.data().rank() * sequence_ranks + s));
    }
    for (int d = 0; d < grid.data().size(); ++d) {
      EXPECT_EQ(peers[d], std::to_string(d * sequence_ranks + grid.sequence().rank()));
    }
  }
}

TEST(ProcessGrid, NamesTheRanksThatDoNotDivide) {
  const int size = test::world().size();
  for (const std::int64_t sequence_ranks : {std::int64_t{0}, std::int64_t{size} + 1}) {
    try {
      const ProcessGrid grid(test::world(), sequence_ranks);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
      EXPECT_THAT(error.what(),
                  HasSubstr(fmt::format("parallel.sequence_ranks = {}: must divide the {} ranks",
                                        sequence_ranks, size)));
    }
  }
}

// Collectives of one group neither wait for the other groups nor see their messages.
TEST(Split, GroupsWorkAlone) {
  Communicator& world = test::world();
  const auto group = world.split(world.rank() % 2, -world.rank());
  EXPECT_EQ(group->size(), (world.size() + 1 - world.rank() % 2) / 2);
  EXPECT_EQ(group->rank(), group->size() - 1 - world.rank() / 2) << "keys order the ranks";
  Stream stream;
  const Tensor sum({3}, DType::kF64);
  fill(sum, world.rank());
  for (int i = 0; i <= world.rank() % 2; ++i) group->all_reduce_sum(sum, stream);
  double expected = 0;
  for (int r = world.rank() % 2; r < world.size(); r += 2) expected += r;
  if (world.rank() % 2 == 1) expected *= group->size();
  EXPECT_EQ(sum.data<double>()[2], expected);
  EXPECT_EQ(make_single_communicator()->split(3, 1)->size(), 1);
}

// Everyone posts before anyone receives: messages far beyond what a transport buffers would deadlock as sends.
TEST(Post, DoesNotWaitAndKeepsACopy) {
  Communicator& world = test::world();
  if (world.size() == 1) return;  // no peer
  Stream stream;
  const int next = (world.rank() + 1) % world.size();
  const int previous = (world.rank() + world.size() - 1) % world.size();
  const Tensor message({std::int64_t{1} << 20}, DType::kF32);
  for (int i = 0; i < 3; ++i) {
    fill(message, 10 * world.rank() + i);
    world.post(message, next, stream);
  }
  world.post(message.view().slice(0, 0), next, stream);
  fill(message, -1);
  world.barrier();
  const Tensor received({std::int64_t{1} << 20}, DType::kF32);
  for (int i = 0; i < 3; ++i) {
    world.recv(received, previous, stream);
    EXPECT_EQ(received.data<float>()[0], static_cast<float>(10 * previous + i));
    EXPECT_EQ(received.data<float>()[received.numel() - 1], static_cast<float>(10 * previous + i));
  }
  world.recv(received.view().slice(0, 0), previous, stream);
}

// Rank 0 is outside MPI until its message has arrived: over TCP (dist_tcp) it would stay here without the thread that looks
// after what was posted.
TEST(Post, LeavesWhileItsSenderComputes) {
  Communicator& world = test::world();
  if (world.size() != 2) return;  // one sender, one receiver
  Stream stream;
  std::string mine = testing::TempDir() + "posted_XXXXXX";
  if (world.rank() == 0) close(mkstemp(mine.data()));
  const std::string sign = world.gather_strings(mine).front();  // removed on arrival
  const Tensor message({std::int64_t{1} << 21}, DType::kF32);
  if (world.rank() == 0) {
    fill(message, 3);
    world.post(message, 1, stream);
    const Timer timer;
    while (std::filesystem::exists(sign) && timer.seconds() < 60) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_FALSE(std::filesystem::exists(sign)) << "it has not left in a minute";
  } else {
    world.recv(message, 0, stream);
    std::filesystem::remove(sign);
    EXPECT_EQ(message.data<float>()[message.numel() - 1], 3);
  }
  world.barrier();
}

}  // namespace
}  // namespace ttt::dist
