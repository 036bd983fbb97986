// Weights of a Hugging Face directory -> the model's parameters.

#include <set>

#include "data/interchange/huggingface.h"
#include "data/interchange/rotary_rows.h"

namespace ttt::data {
namespace {

bool is_floating(DType dtype) {
  return dtype == DType::kF64 || dtype == DType::kF32 || dtype == DType::kBF16;
}

void check_same_tensors(const std::string& directory, const config::ModelConfig& model,
                        const SafetensorsFile& file, std::span<const NamedTensor> tensors) {
  std::vector<std::string> problems;
  std::set<std::string> expected;
  for (const auto& [native, view] : tensors) {
    const std::string name = hf_name(model, native);
    TTT_CHECK(expected.insert(name).second, "'{}' is asked for twice", name);
    if (!file.has(name)) {
      problems.push_back(fmt::format("{} {} is missing", name, view.shape().str()));
      continue;
    }
    const SafetensorsInfo info = file.info(name);
    if (info.shape != view.shape()) {
      problems.push_back(
          fmt::format("{} is {}, expected {}", name, info.shape.str(), view.shape().str()));
    } else if (!is_floating(info.dtype)) {
      problems.push_back(fmt::format("{} is of {}", name, name_of(info.dtype)));
    }
  }
  for (const std::string& name : file.names()) {
    if (!expected.contains(name)) {
      problems.push_back(
          fmt::format("{} {} is not in the model", name, file.info(name).shape.str()));
    }
  }
  if (!problems.empty()) {
    fail(ExitCode::kCorruptInput, "the weights in {} do not fit the model: {}", directory,
         fmt::join(problems, "; "));
  }
}

}  // namespace

void load_hf_weights(const std::string& directory, const config::ModelConfig& model,
                     std::span<const NamedTensor> tensors) {
  check_exportable(model);
  const SafetensorsFile file = open_model(directory);
  check_same_tensors(directory, model, file, tensors);
  for (const auto& [native, view] : tensors) {
    const Tensor read = file.read(hf_name(model, native));
    const std::int64_t heads = interleaved_heads(model, native);
    copy(heads > 0 ? interleaved_from_halves(read, heads) : read, view);
  }
}

}  // namespace ttt::data
