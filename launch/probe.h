#pragma once
// `ttt probe`: machine-readable numbers for comparison with other implementations. Inputs and outputs
// are safetensors files; docs/architecture.md, section 4, lists the tensors of every verb with their shapes.

#include <cstdint>
#include <string>
#include <vector>

namespace ttt::launch {

struct ProbeOptions {
  std::string model;                   // Hugging Face directory
  std::string input;                   // safetensors
  std::string output;                  // safetensors
  std::string dtype = "f32";           // f64, f32 or bf16
  std::string device = "cpu";          // cpu or cuda
  bool gradients = false;              // loss
  std::int64_t max_new_tokens = 0;     // generate
  std::vector<std::string> overrides;  // train: optimizer.FIELD=VALUE
};

/// Logits, loss and gradients of a model.
void probe_loss(const ProbeOptions& options);
/// Output, gradients and final fast weights of one TTT layer.
void probe_layer(const ProbeOptions& options);
/// Greedy decoding: prefill logits, chosen ids, logits of every step.
void probe_generate(const ProbeOptions& options);
/// Training steps on given batches: losses, gradient norms, rates, final weights.
void probe_train(const ProbeOptions& options);

}  // namespace ttt::launch
