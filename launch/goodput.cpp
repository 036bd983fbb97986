#include "launch/goodput.h"

#include <algorithm>
#include <cmath>

#include "core/base/error.h"

namespace ttt::launch {
namespace {

struct Shares {
  double stalled, lost;
};

Shares shares(const GoodputInputs& inputs, double interval) {
  const double period = interval + inputs.stall_seconds;
  const double lost = std::min(
      1.0, (inputs.restart_seconds + inputs.write_seconds + period / 2) / inputs.failure_seconds);
  return {(1 - lost) * inputs.stall_seconds / period, lost};
}

}  // namespace

Goodput goodput(const GoodputInputs& inputs) {
  TTT_CHECK(inputs.stall_seconds > 0 && inputs.write_seconds >= inputs.stall_seconds &&
                inputs.interval_seconds > 0 && inputs.failure_seconds > 0 &&
                inputs.restart_seconds >= 0,
            "goodput of numbers that are not positive");
  Goodput result;
  const Shares now = shares(inputs, inputs.interval_seconds);
  result.stalled = now.stalled;
  result.lost_and_restarting = now.lost;
  result.training = 1 - now.stalled - now.lost;
  result.best_interval_seconds =
      std::max(inputs.write_seconds, std::sqrt(2 * inputs.stall_seconds * inputs.failure_seconds));
  const Shares best = shares(inputs, result.best_interval_seconds);
  result.at_best_interval = 1 - best.stalled - best.lost;
  return result;
}

}  // namespace ttt::launch
