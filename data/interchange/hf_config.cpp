// config.json -> ModelConfig.

#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "data/files.h"
#include "data/interchange/huggingface.h"

namespace ttt::data {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t kMaxConfigBytes = std::int64_t{1} << 20;

// Typed access to an object's keys; every error names the file and the key.
class Keys {
 public:
  Keys(std::string where, const Json& json) : where_(std::move(where)), json_(json) {}

  [[nodiscard]] bool has(const char* key) const {
    return json_.contains(key) && !json_.at(key).is_null();
  }
  [[nodiscard]] const Json& at(const char* key) const {
    if (!has(key)) fail(ExitCode::kCorruptInput, "{}: '{}' is missing", where_, key);
    return json_.at(key);
  }
  [[noreturn]] void reject(const char* key, const char* expectation) const {
    fail(ExitCode::kCorruptInput, "{}: '{}' is {}; {}", where_, key, at(key).dump(), expectation);
  }
  [[nodiscard]] std::int64_t positive(const char* key) const {
    const Json& value = at(key);
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() == 0 ||
        value.get<std::uint64_t>() > std::numeric_limits<std::int32_t>::max()) {
      reject(key, "it must be a positive integer");
    }
    return value.get<std::int64_t>();
  }
  [[nodiscard]] std::int64_t positive(const char* key, std::int64_t otherwise) const {
    return has(key) ? positive(key) : otherwise;
  }
  [[nodiscard]] double positive_number(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    if (!at(key).is_number() || !(at(key).get<double>() > 0)) {
      reject(key, "it must be a positive number");
    }
    return at(key).get<double>();
  }
  [[nodiscard]] bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!at(key).is_boolean()) reject(key, "it must be true or false");
    return at(key).get<bool>();
  }
  [[nodiscard]] std::string text(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    if (!at(key).is_string()) reject(key, "it must be a string");
    return at(key).get<std::string>();
  }
  void expect_text(const char* key, const std::string& expected) const {
    if (text(key, expected) != expected) {
      reject(key, fmt::format("only '{}' is supported", expected).c_str());
    }
  }
  void expect_false(const char* key) const {
    if (flag(key, false)) reject(key, "only false is supported");
  }

 private:
  std::string where_;
  const Json& json_;
};

// transformers 5 moved rope_theta into rope_parameters; scaled variants are not implemented.
double rope_theta(const std::string& path, const Keys& keys) {
  if (keys.has("rope_scaling")) keys.reject("rope_scaling", "only null is supported");
  const double top = keys.positive_number("rope_theta", 10000);
  if (!keys.has("rope_parameters")) return top;
  const Keys rope(path + ": rope_parameters", keys.at("rope_parameters"));
  if (!keys.at("rope_parameters").is_object())
    keys.reject("rope_parameters", "an object is needed");
  rope.expect_text("rope_type", "default");
  if (rope.has("partial_rotary_factor") && rope.positive_number("partial_rotary_factor", 1) != 1) {
    rope.reject("partial_rotary_factor", "only 1 is supported");
  }
  const double theta = rope.positive_number("rope_theta", top);
  if (keys.has("rope_theta") && theta != top) {
    rope.reject("rope_theta", "it contradicts the rope_theta outside");
  }
  return theta;
}

void read_ttt(const Keys& keys, config::ModelConfig& model) {
  const std::string type = keys.text("ttt_layer_type", "linear");
  if (type != "linear" && type != "mlp") {
    keys.reject("ttt_layer_type", "'linear' and 'mlp' are supported");
  }
  model.set_mixer(type == "linear" ? config::TTT_LINEAR : config::TTT_MLP);
  model.set_use_gate(keys.flag("use_gate", false));
  model.set_share_qk(keys.flag("share_qk", false));
  model.set_pre_conv(keys.flag("pre_conv", false));
  model.set_conv_kernel(keys.positive("conv_kernel", 4));
  model.set_tie_embeddings(keys.flag("tie_word_embeddings", true));
  model.mutable_ttt()->set_mini_batch_size(keys.positive("mini_batch_size", 16));
  model.mutable_ttt()->set_base_learning_rate(keys.positive_number("ttt_base_lr", 1.0));
}

void read_llama(const Keys& keys, config::ModelConfig& model) {
  model.set_mixer(config::ATTENTION);
  keys.expect_false("attention_bias");
  keys.expect_false("mlp_bias");
  const std::int64_t heads = model.num_heads();
  const std::int64_t kv_heads = keys.positive("num_key_value_heads", heads);
  if (heads % kv_heads != 0) {
    keys.reject("num_key_value_heads", "it must divide num_attention_heads");
  }
  const std::int64_t head_dim = model.hidden_size() / heads;
  if (keys.positive("head_dim", head_dim) != head_dim) {
    keys.reject("head_dim", "only hidden_size / num_attention_heads is supported");
  }
  model.set_tie_embeddings(keys.flag("tie_word_embeddings", false));
  model.mutable_attention()->set_num_kv_heads(kv_heads);
  model.mutable_attention()->set_rope_pairing(config::AttentionConfig::HALVES);
}

Json parse_config(const std::string& path) {
  const std::string text = read_text_file(path, kMaxConfigBytes);
  try {
    Json json = Json::parse(text);
    if (json.is_object()) return json;
  } catch (const Json::exception& error) {
    fail(ExitCode::kCorruptInput, "{}: {}", path, error.what());
  }
  fail(ExitCode::kCorruptInput, "{}: not a JSON object", path);
}

}  // namespace

config::ModelConfig read_hf_config(const std::string& directory) {
  const std::string path = std::filesystem::path(directory) / "config.json";
  const Json json = parse_config(path);
  const Keys keys(path, json);
  const std::string type = keys.at("model_type").is_string() ? keys.text("model_type", "") : "";
  if (type != "ttt" && type != "llama") {
    keys.reject("model_type", "'ttt' and 'llama' are supported");
  }
  keys.expect_text("hidden_act", "silu");
  if (keys.positive("pretraining_tp", 1) != 1) keys.reject("pretraining_tp", "only 1 is supported");

  config::ModelConfig model;
  model.set_vocab_size(keys.positive("vocab_size"));
  model.set_hidden_size(keys.positive("hidden_size"));
  model.set_intermediate_size(keys.positive("intermediate_size"));
  model.set_num_layers(keys.positive("num_hidden_layers"));
  model.set_num_heads(keys.positive("num_attention_heads"));
  if (model.hidden_size() % (2 * model.num_heads()) != 0) {
    keys.reject("num_attention_heads", "hidden_size must be a multiple of twice that");
  }
  model.set_rms_norm_epsilon(keys.positive_number("rms_norm_eps", 1e-6));
  model.set_initializer_range(keys.positive_number("initializer_range", 0.02));
  model.set_rope_theta(rope_theta(path, keys));
  if (type == "ttt") {
    read_ttt(keys, model);
  } else {
    read_llama(keys, model);
  }
  return model;
}

}  // namespace ttt::data
