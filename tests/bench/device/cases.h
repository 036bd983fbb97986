#pragma once
// What is measured: kernels of one layer, and whole training steps of the published models.

#include <string>

#include "tests/bench/device/report.h"

namespace ttt::bench {

struct Plan {
  Stream& stream;
  double budget_ms;     // of a row
  bool is_smoke;        // sizes of a second each, to prove the path where there is no device
  std::string presets;  // the folder configs/pile
};

/// TTT-Linear and TTT-MLP, forward and forward with backward, over lengths and over (batch x head) pairs; decode steps.
void measure_ttt(const Plan& plan, Report& report);
/// Softmax attention at the same shapes.
void measure_attention(const Plan& plan, Report& report);
/// Training steps: forward, loss, backward, clipping and AdamW on random tokens.
void measure_steps(const Plan& plan, Report& report);

}  // namespace ttt::bench
