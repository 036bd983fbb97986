#pragma once
// What is measured: kernels of one layer, and the published models in training and in generation.

#include <string>

#include "core/model.h"
#include "tests/bench/device/report.h"

namespace ttt::bench {

struct Plan {
  Stream& stream;
  double budget_ms;     // of a row
  bool is_smoke;        // sizes of a second each, to prove the path where there is no device
  std::string presets;  // the folder configs/pile
};

/// TTT-Linear and TTT-MLP, forward and forward with backward, over lengths and over (batch x head) pairs; decode
/// steps of one layer.
void measure_ttt(const Plan& plan, Report& report);
/// Softmax attention at the same shapes.
void measure_attention(const Plan& plan, Report& report);
/// Training steps: forward, loss, backward, clipping and AdamW on random tokens.
void measure_steps(const Plan& plan, Report& report);
/// Whole models that generate, with their steps queued and replayed (core/decoder.h) in turn.
void measure_decoding(const Plan& plan, Report& report);

/// Random weights, made on the device: billions of numbers would take the host longer than all that is measured.
void draw_parameters(LanguageModel& model, Stream& stream);

}  // namespace ttt::bench
