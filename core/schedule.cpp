#include "core/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/base/dtype.h"

namespace ttt {

double learning_rate(const config::OptimizerConfig& config, std::int64_t total_steps,
                     std::int64_t step) {
  const double peak = config.learning_rate();
  const std::int64_t warmup = config.warmup_steps();
  if (step < warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
  const std::int64_t decay = config.decay_steps() > 0 ? config.decay_steps() : total_steps;
  const std::int64_t n = decay - warmup;
  if (n <= 0) return config.end_learning_rate();
  const double t = static_cast<double>(std::min(step - warmup, n)) / static_cast<double>(n);
  const double end = config.end_learning_rate();
  return end + (peak - end) * 0.5 * (1.0 + std::cos(std::numbers::pi * t));
}

double inner_lr_multiplier(const config::OptimizerConfig& config, std::int64_t step) {
  const std::int64_t warmup = config.inner_warmup_steps();
  if (warmup <= 0) return 1.0;
  const double progress = std::min(1.0, static_cast<double>(step) / static_cast<double>(warmup));
  const double init = config.inner_warmup_init();
  // The authors keep the multiplier in bfloat16; following the published recipe needs the same.
  return static_cast<double>(
      static_cast<float>(BFloat16(static_cast<float>(init + progress * (1.0 - init)))));
}

}  // namespace ttt
