#pragma once
// The two ways to pair the rows of q and k for rotary embeddings. Internal to data/interchange.

#include <string>

#include "configs/run.pb.h"
#include "core/base/tensor.h"

namespace ttt::data {

/// Heads whose rows must change places between the model's pairing and Llama's halves; 0 when the
/// tensor is neither q nor k of an attention layer with interleaved pairs.
std::int64_t interleaved_heads(const config::ModelConfig& model, const std::string& native_name);

/// Rows (2j, 2j + 1) of every head become (j, j + F/2). `weight` is [num_heads * F, C].
Tensor halves_from_interleaved(const TensorView& weight, std::int64_t num_heads);
/// The inverse.
Tensor interleaved_from_halves(const TensorView& weight, std::int64_t num_heads);

}  // namespace ttt::data
