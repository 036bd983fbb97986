#pragma once
// The ranks as a grid: world = data x sequence.
//
// S adjacent ranks hold a sequence together, since they talk in every layer; ranks with the same place in their
// sequences share the batch and talk once a step. World rank = data rank * S + sequence rank.

#include <cstdint>
#include <memory>

#include "dist/communicator.h"

namespace ttt::dist {

class ProcessGrid {
 public:
  /// Collective over `world`, which must outlive the grid. Throws kUsage unless `sequence_ranks` divides its size.
  ProcessGrid(Communicator& world, std::int64_t sequence_ranks);

  [[nodiscard]] Communicator& world() const { return world_; }
  /// The ranks that hold the same part of other sequences.
  [[nodiscard]] Communicator& data() const { return *data_; }
  /// The ranks that hold the other parts of the same sequences.
  [[nodiscard]] Communicator& sequence() const { return *sequence_; }

 private:
  Communicator& world_;
  std::unique_ptr<Communicator> data_, sequence_;
};

}  // namespace ttt::dist
