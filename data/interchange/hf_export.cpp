// Parameters -> a directory that transformers loads as it is.

#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "data/files.h"
#include "data/interchange/huggingface.h"
#include "data/interchange/python_sources.h"
#include "data/interchange/rotary_rows.h"
#include "data/tokenizer/tokenizer.h"

namespace ttt::data {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

bool is_ttt(const config::ModelConfig& model) {
  return model.mixer() == config::TTT_LINEAR || model.mixer() == config::TTT_MLP;
}

Json id_or_null(std::int64_t id) { return id < 0 ? Json(nullptr) : Json(id); }

Json config_json(const config::ModelConfig& model, const HfExport& options) {
  Json json = {
      {"architectures", Json::array({is_ttt(model) ? "TTTForCausalLM" : "LlamaForCausalLM"})},
      {"model_type", is_ttt(model) ? "ttt" : "llama"},
      {"vocab_size", model.vocab_size()},
      {"hidden_size", model.hidden_size()},
      {"intermediate_size", model.intermediate_size()},
      {"num_hidden_layers", model.num_layers()},
      {"num_attention_heads", model.num_heads()},
      {"hidden_act", "silu"},
      {"max_position_embeddings", options.context_length},
      {"initializer_range", model.initializer_range()},
      {"rms_norm_eps", model.rms_norm_epsilon()},
      {"rope_theta", model.rope_theta()},
      {"pad_token_id", nullptr},
      {"bos_token_id", id_or_null(options.bos_id)},
      {"eos_token_id", id_or_null(options.eos_id)},
      {"pretraining_tp", 1},
      {"tie_word_embeddings", model.tie_embeddings()},
      {"torch_dtype", options.bf16 ? "bfloat16" : "float32"}};
  if (is_ttt(model)) {
    json["use_cache"] = false;
    json["use_gate"] = model.use_gate();
    json["share_qk"] = model.share_qk();
    json["pre_conv"] = model.pre_conv();
    json["conv_kernel"] = model.conv_kernel();
    json["ttt_layer_type"] = model.mixer() == config::TTT_LINEAR ? "linear" : "mlp";
    json["ttt_base_lr"] = model.ttt().base_learning_rate();
    json["mini_batch_size"] = model.ttt().mini_batch_size();
    json["scan_checkpoint_group_size"] = 0;
    json["auto_map"] = {{"AutoConfig", "configuration_ttt.TTTConfig"},
                        {"AutoModelForCausalLM", "modeling_ttt.TTTForCausalLM"}};
  } else {
    const std::int64_t kv_heads = model.attention().num_kv_heads();
    json["use_cache"] = true;
    json["num_key_value_heads"] = kv_heads > 0 ? kv_heads : model.num_heads();
    json["head_dim"] = model.hidden_size() / model.num_heads();
    json["attention_bias"] = false;
    json["attention_dropout"] = 0.0;
    json["mlp_bias"] = false;
    json["rope_scaling"] = nullptr;
  }
  return json;
}

Json generation_json(const config::ModelConfig& model, const HfExport& options) {
  return {{"_from_model_config", true},
          {"bos_token_id", id_or_null(options.bos_id)},
          {"eos_token_id", id_or_null(options.eos_id)},
          {"use_cache", !is_ttt(model)}};
}

void write_json(const fs::path& path, const Json& json) {
  write_file_atomically(path, json.dump(2) + "\n");
}

void write_tokenizer(const fs::path& directory, const HfExport& options) {
  constexpr std::int64_t kMaxTokenizerBytes = std::int64_t{256} << 20;
  const std::string name = tokenizer_file_name(options.tokenizer);
  write_file_atomically(directory / name, read_text_file(options.tokenizer, kMaxTokenizerBytes));
  if (name == "tokenizer.json") {  // it says everything but its class
    write_json(directory / "tokenizer_config.json", {{"tokenizer_class", "PreTrainedTokenizerFast"},
                                                     {"clean_up_tokenization_spaces", false},
                                                     {"model_max_length", options.context_length}});
    return;
  }
  const Json special = {{"bos_token", "<s>"}, {"eos_token", "</s>"}, {"unk_token", "<unk>"}};
  write_json(directory / "special_tokens_map.json", special);
  Json tokenizer = special;
  tokenizer["tokenizer_class"] = "LlamaTokenizer";
  tokenizer["add_bos_token"] = true;
  tokenizer["add_eos_token"] = false;
  tokenizer["clean_up_tokenization_spaces"] = false;
  tokenizer["legacy"] = true;
  tokenizer["model_max_length"] = options.context_length;
  write_json(directory / "tokenizer_config.json", tokenizer);
}

std::string model_card(const config::ModelConfig& model, const HfExport& options) {
  const std::string mixer = config::Mixer_Name(model.mixer());
  const std::string trust = is_ttt(model) ? ", trust_remote_code=True" : "";
  std::string card = fmt::format(
      "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n"
      "# A {} language model\n\n"
      "Trained with ttt-lm-cpp. {} layers, width {}, {} heads, vocabulary {}, trained on windows "
      "of "
      "{} tokens. {}\n\n"
      "```python\nfrom transformers import AutoModelForCausalLM\n\n"
      "model = AutoModelForCausalLM.from_pretrained(\".\"{})\n```\n",
      mixer, model.num_layers(), model.hidden_size(), model.num_heads(), model.vocab_size(),
      options.context_length,
      options.bf16 ? "Weights are rounded to bfloat16." : "Weights are float32.", trust);
  if (is_ttt(model)) {
    card +=
        "\nThe method is Test-Time Training (arXiv:2407.04620). The modelling code here is plain\n"
        "PyTorch and favours clarity: generation reads the whole text again for every token.\n";
  }
  return card;
}

void write_weights(const fs::path& path, const config::ModelConfig& model,
                   std::span<const NamedTensor> tensors, const HfExport& options) {
  const DType dtype = options.bf16 ? DType::kBF16 : DType::kF32;
  std::vector<Tensor> owned;  // what had to be converted, alive until written
  std::vector<NamedTensor> written;
  for (const auto& [native, view] : tensors) {
    if (model.tie_embeddings() && native == "lm_head.weight") continue;
    TensorView source = view;
    if (const std::int64_t heads = interleaved_heads(model, native); heads > 0) {
      source = owned.emplace_back(halves_from_interleaved(source, heads));
    }
    if (source.dtype() != dtype) source = owned.emplace_back(to_dtype(source, dtype));
    written.emplace_back(hf_name(model, native), source);
  }
  write_safetensors(path, written);
}

// Only a directory that does not exist or is empty may be replaced.
void require_free(const fs::path& directory) {
  std::error_code error;
  if (fs::exists(directory, error) && !fs::is_empty(directory, error)) {
    fail(ExitCode::kLocked, "{} exists and is not empty", directory.string());
  }
}

void write_contents(const fs::path& directory, const config::ModelConfig& model,
                    std::span<const NamedTensor> tensors, const HfExport& options) {
  write_weights(directory / "model.safetensors", model, tensors, options);
  write_json(directory / "config.json", config_json(model, options));
  write_json(directory / "generation_config.json", generation_json(model, options));
  write_file_atomically(directory / "README.md", model_card(model, options));
  if (!options.tokenizer.empty()) write_tokenizer(directory, options);
  if (is_ttt(model)) {
    write_file_atomically(directory / "configuration_ttt.py", kConfigurationPython);
    write_file_atomically(directory / "modeling_ttt.py", kModelingPython);
  }
}

}  // namespace

void export_hf(const std::string& directory, const config::ModelConfig& model,
               std::span<const NamedTensor> tensors, const HfExport& options) {
  check_exportable(model);
  fs::path target = fs::absolute(directory).lexically_normal();
  if (!target.has_filename()) target = target.parent_path();  // "out/" names the same as "out"
  require_free(target);
  const fs::path temporary = target.string() + ".tmp";
  std::error_code error;
  fs::remove_all(temporary, error);
  make_output_directory(temporary);
  try {
    write_contents(temporary, model, tensors, options);
    rename_durably(temporary, target);
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
}

}  // namespace ttt::data
