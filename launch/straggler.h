#pragma once
// Which ranks compute more slowly than the others. All ranks wait for the slowest in every step, and nothing else shows which
// one it is.
//
// A rank's time is the lower quartile of its last kWindow steps: what disturbs a step only makes it longer, and a slow rank is
// slow in all of them. Its score is the median of all ranks' times over its own; below the threshold the rank is named,
// once until it has recovered.
// Source: the score of NVIDIA Resiliency Extension's straggler report, which takes medians of steps.

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace ttt::launch {

class StragglerReport {
 public:
  static constexpr std::size_t kWindow = 16;

  /// `threshold` in [0, 1); 0: none is ever named.
  StragglerReport(std::int64_t num_ranks, double threshold);

  struct Straggler {
    std::int64_t rank = 0;
    double score = 0;
  };
  /// A step's seconds of computing by rank; the ranks that are stragglers from now on.
  std::vector<Straggler> add(std::span<const double> seconds);

 private:
  double threshold_;
  std::vector<std::array<double, kWindow>> seconds_;  // by rank
  std::size_t num_steps_ = 0;
  std::vector<bool> is_named_;
};

}  // namespace ttt::launch
