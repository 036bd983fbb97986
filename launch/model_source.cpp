#include "launch/model_source.h"

#include <filesystem>

#include "data/interchange/huggingface.h"

namespace ttt::launch {
namespace {

namespace fs = std::filesystem;

ModelSource open_checkpoint(const std::string& directory) {
  ModelSource source;
  source.kind = SourceKind::kCheckpoint;
  source.directory = directory;
  source.manifest = data::read_manifest(directory);
  source.config = source.manifest.config();
  if (!source.manifest.tokenizer().empty()) {
    source.tokenizer = (fs::path(directory) / source.manifest.tokenizer()).string();
  }
  return source;
}

ModelSource open_hugging_face(const std::string& directory) {
  ModelSource source;
  source.kind = SourceKind::kHuggingFace;
  source.directory = directory;
  *source.config.mutable_model() = data::read_hf_config(directory);
  for (const char* name : {"tokenizer.model", "tokenizer.json"}) {
    const fs::path tokenizer = fs::path(directory) / name;
    if (source.tokenizer.empty() && fs::exists(tokenizer)) source.tokenizer = tokenizer.string();
  }
  return source;
}

}  // namespace

ModelSource open_model_source(const std::string& path) {
  if (!fs::exists(path)) fail(ExitCode::kMissingInput, "model {} does not exist", path);
  if (fs::exists(fs::path(path) / "manifest.textproto")) return open_checkpoint(path);
  if (fs::exists(fs::path(path) / "config.json")) return open_hugging_face(path);
  const auto checkpoints = data::list_checkpoints(path);
  if (!checkpoints.empty()) return open_checkpoint(checkpoints.front().directory);
  fail(ExitCode::kMissingInput,
       "{} is no model: expected a checkpoint (manifest.textproto), a run with checkpoints "
       "(checkpoints/step-*) or a Hugging Face directory (config.json)",
       path);
}

data::FlatState flat_state(const LanguageModel& model, TensorView m, TensorView v) {
  data::FlatState state;
  for (const Parameter& parameter : model.parameters().all()) {
    state.tensors.push_back({parameter.name, parameter.shape, parameter.begin});
  }
  state.values = model.parameters().values();
  state.m = m;
  state.v = v;
  return state;
}

std::vector<data::NamedTensor> named_tensors(const LanguageModel& model) {
  std::vector<data::NamedTensor> tensors;
  for (const Parameter& parameter : model.parameters().all()) {
    tensors.emplace_back(parameter.name, parameter.value);
  }
  return tensors;
}

void load_weights(const ModelSource& source, LanguageModel& model,
                  const std::optional<std::vector<FlatRange>>& wanted) {
  if (source.kind == SourceKind::kHuggingFace) {
    // The model's own configuration: which rows a rotary pairing turns together is not in the files.
    data::load_hf_weights(source.directory, model.config(), named_tensors(model));
    return;
  }
  const DType stored = source.manifest.dtype() == "F64" ? DType::kF64 : DType::kF32;
  if (stored == model.parameters().dtype()) {
    data::read_state(source.directory, source.manifest, flat_state(model, {}, {}), wanted);
    return;
  }
  const Tensor values = Tensor::zeros(model.parameters().values().shape(), stored);
  data::FlatState state = flat_state(model, {}, {});
  state.values = values;
  data::read_state(source.directory, source.manifest, state, wanted);
  copy(values, model.parameters().values());
}

std::unique_ptr<LanguageModel> load_model(const ModelSource& source, DType dtype) {
  auto model =
      std::make_unique<LanguageModel>(source.config.model(), source.config.data().context_length());
  model->parameters().allocate(dtype);
  load_weights(source, *model);
  return model;
}

}  // namespace ttt::launch
