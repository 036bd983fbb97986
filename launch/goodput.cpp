#include "launch/goodput.h"

#include <algorithm>
#include <cmath>

#include "core/base/error.h"

namespace ttt::launch {
namespace {

struct Shares {
  double writing, lost;
};

Shares shares(const GoodputInputs& inputs, double interval, double write) {
  const double period = interval + write;
  const double lost = std::min(1.0, (inputs.restart_seconds + period / 2) / inputs.failure_seconds);
  return {(1 - lost) * write / period, lost};
}

}  // namespace

Goodput goodput(const GoodputInputs& inputs) {
  TTT_CHECK(inputs.checkpoint_bytes > 0 && inputs.write_bandwidth > 0 &&
                inputs.interval_seconds > 0 && inputs.failure_seconds > 0 &&
                inputs.restart_seconds >= 0,
            "goodput of numbers that are not positive");
  Goodput result;
  result.write_seconds = inputs.checkpoint_bytes / inputs.write_bandwidth;
  const Shares now = shares(inputs, inputs.interval_seconds, result.write_seconds);
  result.writing = now.writing;
  result.lost_and_restarting = now.lost;
  result.training = 1 - now.writing - now.lost;
  result.best_interval_seconds = std::sqrt(2 * result.write_seconds * inputs.failure_seconds);
  const Shares best = shares(inputs, result.best_interval_seconds, result.write_seconds);
  result.at_best_interval = 1 - best.writing - best.lost;
  return result;
}

}  // namespace ttt::launch
