#pragma once
// Opening a model from wherever it is: a checkpoint directory, a run directory (its newest
// checkpoint) or a Hugging Face directory.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "configs/manifest.pb.h"
#include "core/model.h"
#include "data/checkpoint/checkpoint.h"
#include "data/interchange/safetensors.h"

namespace ttt::launch {

enum class SourceKind { kCheckpoint, kHuggingFace };

/// What is known before the weights are read.
struct ModelSource {
  SourceKind kind = SourceKind::kCheckpoint;
  std::string directory;                // of the checkpoint or the Hugging Face files
  config::RunConfig config;             // of a Hugging Face directory: defaults but for the model
  config::CheckpointManifest manifest;  // of a checkpoint
  std::string tokenizer;                // path of a SentencePiece model; empty: none known (bytes)
};

/// Finds out what `path` is and reads its configuration. 66 if it is none of the three.
ModelSource open_model_source(const std::string& path);

/// Builds the model in `dtype` and fills in the weights, verified.
std::unique_ptr<LanguageModel> load_model(const ModelSource& source, DType dtype);

/// Fills in the weights of a model of the same configuration: 78 if it is another. Of a checkpoint with `wanted` only what
/// data::read_state reads then.
void load_weights(const ModelSource& source, LanguageModel& model,
                  const std::optional<std::vector<FlatRange>>& wanted = std::nullopt);

/// The model's flat buffers as the checkpoint engine wants them; m and v may be empty.
data::FlatState flat_state(const LanguageModel& model, TensorView m, TensorView v);

/// Every parameter under its native name.
std::vector<data::NamedTensor> named_tensors(const LanguageModel& model);

}  // namespace ttt::launch
