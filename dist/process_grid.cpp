#include "dist/process_grid.h"

namespace ttt::dist {

ProcessGrid::ProcessGrid(Communicator& world, std::int64_t sequence_ranks) : world_(world) {
  if (sequence_ranks < 1 || world.size() % sequence_ranks != 0) {
    fail(ExitCode::kUsage, "parallel.sequence_ranks = {}: must divide the {} ranks", sequence_ranks,
         world.size());
  }
  const int size = static_cast<int>(sequence_ranks);
  data_ = world.split(world.rank() % size, world.rank());
  sequence_ = world.split(world.rank() / size, world.rank());
}

}  // namespace ttt::dist
