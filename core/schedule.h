#pragma once
// The published schedules of the outer learning rate and of the inner rate's warm-up.
//
//   s < warmup:  lr = peak s / warmup          (the first update, s = 0, moves nothing)
//   otherwise:   lr = end + (peak - end) (1 + cos(pi t / n)) / 2,  n = decay - warmup, t = min(s - warmup, n)
//   multiplier(s) = init + min(1, s / inner_warmup) (1 - init), rounded to bfloat16
//
// Source: optax warmup_cosine_decay_schedule and ttt-lm-jax train.py; arXiv:2407.04620 appendix C.

#include <cstdint>

#include "configs/run.pb.h"

namespace ttt {

/// Rate of the update after `step` updates; `total_steps` stands in for decay_steps = 0.
double learning_rate(const config::OptimizerConfig& config, std::int64_t total_steps,
                     std::int64_t step);

/// Multiplier of the inner rate in the forward pass of the same update.
double inner_lr_multiplier(const config::OptimizerConfig& config, std::int64_t step);

}  // namespace ttt
