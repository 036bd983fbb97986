#include "data/interchange/huggingface.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "tests/data/temporary_directory.h"

namespace ttt::data {
namespace {

namespace fs = std::filesystem;

// Parameters by native name, each filled with its own numbers.
struct Weights {
  void add(const std::string& name, const Shape& shape, DType dtype = DType::kF32) {
    Tensor wide(shape, DType::kF64);
    for (std::int64_t i = 0; i < wide.numel(); ++i) {
      wide.data<double>()[i] = std::sin(static_cast<double>(i + 1) * (1.0 + double(names.size())));
    }
    names.push_back(name);
    tensors.push_back(to_dtype(wide, dtype));
  }
  [[nodiscard]] std::vector<NamedTensor> views() const {
    std::vector<NamedTensor> result;
    for (std::size_t i = 0; i < names.size(); ++i) result.emplace_back(names[i], tensors[i]);
    return result;
  }
  [[nodiscard]] Weights zeros(DType dtype) const {
    Weights result;
    result.names = names;
    for (const Tensor& tensor : tensors) {
      result.tensors.push_back(Tensor::zeros(tensor.shape(), dtype));
    }
    return result;
  }
  std::vector<std::string> names;
  std::vector<Tensor> tensors;
};

bool equal_bits(const TensorView& a, const TensorView& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.raw(), b.raw(), static_cast<std::size_t>(a.num_bytes())) == 0;
}

config::ModelConfig small_model(config::Mixer mixer) {
  config::ModelConfig model;
  model.set_vocab_size(11);
  model.set_hidden_size(16);
  model.set_intermediate_size(24);
  model.set_num_layers(1);
  model.set_num_heads(2);
  model.set_mixer(mixer);
  model.set_rms_norm_epsilon(1e-5);
  model.set_rope_theta(500);
  model.set_initializer_range(0.03);
  if (mixer == config::ATTENTION) {
    model.mutable_attention()->set_num_kv_heads(1);
    model.mutable_attention()->set_rope_pairing(config::AttentionConfig::HALVES);
    model.set_tie_embeddings(false);
  } else {
    model.mutable_ttt()->set_mini_batch_size(8);
    model.mutable_ttt()->set_base_learning_rate(0.1);
    model.set_use_gate(true);
    model.set_share_qk(true);
    model.set_pre_conv(true);
    model.set_conv_kernel(3);
    model.set_tie_embeddings(true);
  }
  return model;
}

// Not every tensor of a model: the file functions do not know the architecture.
Weights some_weights(const config::ModelConfig& model, DType dtype = DType::kF32) {
  Weights weights;
  weights.add("model.embed_tokens.weight", Shape{11, 16}, dtype);
  weights.add("model.layers.0.seq_norm.weight", Shape{16}, dtype);
  weights.add("model.layers.0.seq_modeling_block.q_proj.weight", Shape{16, 16}, dtype);
  if (model.mixer() == config::ATTENTION) {
    weights.add("model.layers.0.seq_modeling_block.k_proj.weight", Shape{8, 16}, dtype);
  } else {
    weights.add("model.layers.0.seq_modeling_block.W1", Shape{2, 8, 8}, dtype);
  }
  weights.add("model.layers.0.ffn_norm.weight", Shape{16}, dtype);
  weights.add("model.norm.weight", Shape{16}, dtype);
  if (!model.tie_embeddings()) weights.add("lm_head.weight", Shape{11, 16}, dtype);
  return weights;
}

TEST(HuggingFace, TttModelRoundTrips) {
  for (const config::Mixer mixer : {config::TTT_LINEAR, config::TTT_MLP}) {
    const TemporaryDirectory directory;
    const config::ModelConfig model = small_model(mixer);
    const Weights weights = some_weights(model);
    const std::string out = directory / "out";
    export_hf(out, model, weights.views(), {});
    const config::ModelConfig read = read_hf_config(out);
    EXPECT_EQ(read.SerializeAsString(), model.SerializeAsString()) << read.DebugString();
    const Weights back = weights.zeros(DType::kF32);
    load_hf_weights(out, read, back.views());
    for (std::size_t i = 0; i < weights.names.size(); ++i) {
      EXPECT_TRUE(equal_bits(back.tensors[i], weights.tensors[i])) << weights.names[i];
    }
  }
}

TEST(HuggingFace, LlamaModelRoundTripsUnderItsOwnNames) {
  const TemporaryDirectory directory;
  const config::ModelConfig model = small_model(config::ATTENTION);
  const Weights weights = some_weights(model);
  const std::string out = directory / "out";
  export_hf(out + "/", model, weights.views(), {});
  const config::ModelConfig read = read_hf_config(out);
  EXPECT_EQ(read.SerializeAsString(), model.SerializeAsString()) << read.DebugString();
  EXPECT_EQ(
      open_model(out).names(),
      (std::vector<std::string>{"lm_head.weight", "model.embed_tokens.weight",
                                "model.layers.0.input_layernorm.weight",
                                "model.layers.0.post_attention_layernorm.weight",
                                "model.layers.0.self_attn.k_proj.weight",
                                "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"}));
  EXPECT_FALSE(fs::exists(out + "/modeling_ttt.py"));
  const Weights back = weights.zeros(DType::kF64);
  load_hf_weights(out, read, back.views());
  EXPECT_TRUE(equal_bits(to_dtype(back.tensors[3], DType::kF32), weights.tensors[3]));
}

TEST(HuggingFace, NamesAreNativeForTttAndLlamasForAttention) {
  const config::ModelConfig ttt = small_model(config::TTT_MLP);
  const config::ModelConfig llama = small_model(config::ATTENTION);
  const std::map<std::string, std::string> names = {
      {"model.embed_tokens.weight", "model.embed_tokens.weight"},
      {"model.layers.12.seq_modeling_block.o_proj.weight",
       "model.layers.12.self_attn.o_proj.weight"},
      {"model.layers.3.seq_norm.weight", "model.layers.3.input_layernorm.weight"},
      {"model.layers.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"},
      {"model.layers.3.mlp.gate_proj.weight", "model.layers.3.mlp.gate_proj.weight"},
      {"model.norm.weight", "model.norm.weight"},
      {"lm_head.weight", "lm_head.weight"}};
  for (const auto& [native, name] : names) {
    EXPECT_EQ(hf_name(llama, native), name);
    EXPECT_EQ(hf_name(ttt, native), native);
  }
}

TEST(HuggingFace, TiedHeadIsLeftOut) {
  const TemporaryDirectory directory;
  config::ModelConfig model = small_model(config::TTT_LINEAR);
  Weights weights = some_weights(model);
  weights.add("lm_head.weight", Shape{11, 16});
  export_hf(directory / "tied", model, weights.views(), {});
  EXPECT_FALSE(open_model(directory / "tied").has("lm_head.weight"));
  model.set_tie_embeddings(false);
  export_hf(directory / "untied", model, weights.views(), {});
  EXPECT_TRUE(open_model(directory / "untied").has("lm_head.weight"));
  EXPECT_FALSE(read_hf_config(directory / "untied").tie_embeddings());
}

TEST(HuggingFace, InterleavedRowsBecomeHalvesAndBack) {
  const TemporaryDirectory directory;
  config::ModelConfig model = small_model(config::ATTENTION);
  model.mutable_attention()->set_rope_pairing(config::AttentionConfig::INTERLEAVED);
  const Weights weights = some_weights(model);
  const std::string out = directory / "out";
  export_hf(out, model, weights.views(), {});
  const SafetensorsFile file = open_model(out);
  const Tensor q = file.read("model.layers.0.self_attn.q_proj.weight");
  const Tensor k = file.read("model.layers.0.self_attn.k_proj.weight");
  // Heads of width 8: q has two, k one (num_kv_heads).
  for (std::int64_t head = 0; head < 2; ++head) {
    for (std::int64_t pair = 0; pair < 4; ++pair) {
      for (std::int64_t side = 0; side < 2; ++side) {
        const std::int64_t row = head * 8 + 2 * pair + side;
        const std::int64_t half = head * 8 + pair + 4 * side;
        EXPECT_TRUE(equal_bits(q.view().slice(half, half + 1),
                               weights.tensors[2].view().slice(row, row + 1)));
        if (head == 0) {
          EXPECT_TRUE(equal_bits(k.view().slice(half, half + 1),
                                 weights.tensors[3].view().slice(row, row + 1)));
        }
      }
    }
  }
  EXPECT_TRUE(equal_bits(file.read("lm_head.weight"), weights.tensors.back()));
  EXPECT_EQ(read_hf_config(out).attention().rope_pairing(), config::AttentionConfig::HALVES);
  const Weights back = weights.zeros(DType::kF32);
  load_hf_weights(out, model, back.views());  // into a model that pairs neighbours
  EXPECT_TRUE(equal_bits(back.tensors[2], weights.tensors[2]));
  EXPECT_TRUE(equal_bits(back.tensors[3], weights.tensors[3]));
}

TEST(HuggingFace, Bf16ExportRoundsToNearest) {
  const TemporaryDirectory directory;
  const config::ModelConfig model = small_model(config::TTT_LINEAR);
  const Weights weights = some_weights(model, DType::kF64);
  HfExport options;
  options.bf16 = true;
  export_hf(directory / "out", model, weights.views(), options);
  EXPECT_EQ(open_model(directory / "out").info("model.norm.weight").dtype, DType::kBF16);
  const Weights back = weights.zeros(DType::kBF16);
  load_hf_weights(directory / "out", model, back.views());
  EXPECT_TRUE(equal_bits(back.tensors[0], to_dtype(weights.tensors[0], DType::kBF16)));
}

TEST(HuggingFace, DirectoryIsSelfContained) {
  const TemporaryDirectory directory;
  write_bytes(directory / "books.model", "sentencepiece");
  const config::ModelConfig model = small_model(config::TTT_LINEAR);
  HfExport options;
  options.tokenizer = directory / "books.model";
  options.context_length = 64;
  const std::string out = directory / "out";
  fs::create_directories(out);  // an empty directory may be filled
  export_hf(out, model, some_weights(model).views(), options);
  for (const char* name : {"config.json", "generation_config.json", "model.safetensors",
                           "tokenizer_config.json", "special_tokens_map.json", "README.md"}) {
    EXPECT_TRUE(fs::exists(out + "/" + name)) << name;
  }
  EXPECT_EQ(contents_of(out + "/tokenizer.model"), "sentencepiece");
  const std::string source = TTT_SOURCE_DIR "/data/interchange/python/";
  EXPECT_EQ(contents_of(out + "/modeling_ttt.py"), contents_of(source + "modeling_ttt.py"));
  EXPECT_EQ(contents_of(out + "/configuration_ttt.py"),
            contents_of(source + "configuration_ttt.py"));
  const std::string config = contents_of(out + "/config.json");
  for (const char* part : {"\"max_position_embeddings\": 64", "modeling_ttt.TTTForCausalLM",
                           "\"ttt_layer_type\": \"linear\"", "\"mini_batch_size\": 8"}) {
    EXPECT_NE(config.find(part), std::string::npos) << part;
  }
}

TEST(HuggingFace, ExportNeverTouchesADirectoryInUse) {
  const TemporaryDirectory directory;
  const config::ModelConfig model = small_model(config::TTT_LINEAR);
  const Weights weights = some_weights(model);
  fs::create_directories(directory / "out");
  write_bytes(directory / "out/mine", "x");
  expect_error(ExitCode::kLocked, "not empty",
               [&] { export_hf(directory / "out", model, weights.views(), {}); });
  HfExport options;
  options.tokenizer = directory / "no.model";
  expect_error(ExitCode::kMissingInput, "no.model",
               [&] { export_hf(directory / "half", model, weights.views(), options); });
  EXPECT_FALSE(fs::exists(directory / "half"));
  EXPECT_FALSE(fs::exists(directory / "half.tmp"));
}

TEST(HuggingFace, ModelsWithoutCounterpartAreRefused) {
  const TemporaryDirectory directory;
  const auto expect_refused = [&](config::Mixer mixer, const std::string& field, auto change) {
    config::ModelConfig model = small_model(mixer);
    change(model);
    expect_error(ExitCode::kUsage, field,
                 [&] { export_hf(directory / "out", model, some_weights(model).views(), {}); });
    EXPECT_FALSE(fs::exists(directory / "out"));
  };
  using Model = config::ModelConfig;
  using Ttt = config::TttConfig;
  const config::Mixer ttt = config::TTT_LINEAR;
  expect_refused(ttt, "ttt.mini_batch_size",
                 [](Model& m) { m.mutable_ttt()->set_mini_batch_size(0); });
  expect_refused(ttt, "ttt.learning_rate",
                 [](Model& m) { m.mutable_ttt()->set_learning_rate(Ttt::CONSTANT); });
  expect_refused(ttt, "ttt.token_scale",
                 [](Model& m) { m.mutable_ttt()->set_token_scale(Ttt::ONE); });
  expect_refused(ttt, "ttt.initial_state",
                 [](Model& m) { m.mutable_ttt()->set_initial_state(Ttt::ZERO); });
  expect_refused(ttt, "ttt.inner_norm", [](Model& m) { m.mutable_ttt()->set_inner_norm(false); });
  expect_refused(ttt, "ttt.inner_bias", [](Model& m) { m.mutable_ttt()->set_inner_bias(false); });
  expect_refused(ttt, "ttt.mlp_expansion", [](Model& m) { m.mutable_ttt()->set_mlp_expansion(2); });
  expect_refused(ttt, "ttt.rope", [](Model& m) { m.mutable_ttt()->set_rope(false); });
  expect_refused(config::LINEAR_ATTENTION, "mixer", [](Model&) {});
  expect_refused(config::ATTENTION, "use_gate", [](Model& m) { m.set_use_gate(true); });
  expect_refused(config::ATTENTION, "share_qk", [](Model& m) { m.set_share_qk(true); });
  expect_refused(config::ATTENTION, "pre_conv", [](Model& m) { m.set_pre_conv(true); });
}

TEST(HuggingFace, AllWrongTensorsAreNamedAtOnce) {
  const TemporaryDirectory directory;
  const config::ModelConfig model = small_model(config::ATTENTION);
  const Weights weights = some_weights(model);
  export_hf(directory / "out", model, weights.views(), {});
  Weights other;
  for (std::size_t i = 2; i < weights.names.size(); ++i) {
    other.add(weights.names[i], weights.tensors[i].shape());
  }
  other.add("model.layers.0.seq_norm.weight", Shape{17});
  other.add("model.layers.1.seq_norm.weight", Shape{16});
  for (const char* part : {"model.layers.0.input_layernorm.weight is [16], expected [17]",
                           "model.layers.1.input_layernorm.weight [16] is missing",
                           "model.embed_tokens.weight [11, 16] is not in the model"}) {
    expect_error(ExitCode::kCorruptInput, part,
                 [&] { load_hf_weights(directory / "out", model, other.views()); });
  }
}

class HfConfig : public ::testing::Test {
 protected:
  [[nodiscard]] config::ModelConfig read(const std::string& json) const {
    write_bytes(directory_ / "config.json", json);
    return read_hf_config(directory_.str());
  }
  void expect_refused(const std::string& json, const std::string& part) const {
    SCOPED_TRACE(json);
    expect_error(ExitCode::kCorruptInput, part, [&] { (void)read(json); });
  }
  static std::string ttt(const std::string& more) {
    return R"({"model_type":"ttt",)" + kSizes + more + "}";
  }
  static std::string llama(const std::string& more) {
    return R"({"model_type":"llama",)" + kSizes + more + "}";
  }
  static inline const std::string kSizes =
      R"("vocab_size":100,"hidden_size":64,"intermediate_size":96,"num_hidden_layers":3,)"
      R"("num_attention_heads":4)";
  TemporaryDirectory directory_;
};

TEST_F(HfConfig, MissingKeysHaveTheDefaultsOfTheirClass) {
  const auto model = read(ttt(""));
  EXPECT_EQ(model.mixer(), config::TTT_LINEAR);
  EXPECT_EQ(model.ttt().mini_batch_size(), 16);
  EXPECT_EQ(model.ttt().base_learning_rate(), 1.0);
  EXPECT_TRUE(model.tie_embeddings());
  EXPECT_FALSE(model.use_gate() || model.share_qk() || model.pre_conv());
  const auto attention = read(llama(""));
  EXPECT_EQ(attention.mixer(), config::ATTENTION);
  EXPECT_EQ(attention.attention().num_kv_heads(), 4);
  EXPECT_FALSE(attention.tie_embeddings());
  EXPECT_EQ(attention.rope_theta(), 10000);
}

TEST_F(HfConfig, RopeThetaMayBeInRopeParameters) {
  const std::string rope = R"(,"rope_parameters":{"rope_type":"default","rope_theta":5e5})";
  EXPECT_EQ(read(llama(rope)).rope_theta(), 5e5);
  EXPECT_EQ(read(llama(R"(,"rope_theta":123.5)")).rope_theta(), 123.5);
  expect_refused(llama(rope + R"(,"rope_theta":1e4)"), "contradicts");
  expect_refused(llama(R"(,"rope_parameters":{"rope_type":"llama3"})"), "rope_type");
  expect_refused(llama(R"(,"rope_parameters":7)"), "rope_parameters");
  expect_refused(llama(R"(,"rope_scaling":{"factor":2})"), "rope_scaling");
}

TEST_F(HfConfig, UnsupportedValuesAreRefusedByKey) {
  expect_refused("", "config.json");
  expect_refused("[]", "not a JSON object");
  expect_refused("{}", "'model_type' is missing");
  expect_refused(R"({"model_type":"mamba"})", "model_type");
  expect_refused(R"({"model_type":7})", "model_type");
  expect_refused(R"({"model_type":"ttt"})", "'vocab_size' is missing");
  expect_refused(ttt(R"(,"hidden_size":0)"), "hidden_size");
  expect_refused(ttt(R"(,"hidden_size":-64)"), "hidden_size");
  expect_refused(ttt(R"(,"hidden_size":64.5)"), "hidden_size");
  expect_refused(ttt(R"(,"vocab_size":1e30)"), "vocab_size");
  expect_refused(ttt(R"(,"num_attention_heads":5)"), "num_attention_heads");
  expect_refused(ttt(R"(,"hidden_act":"gelu")"), "hidden_act");
  expect_refused(ttt(R"(,"ttt_layer_type":"rnn")"), "ttt_layer_type");
  expect_refused(ttt(R"(,"use_gate":1)"), "use_gate");
  expect_refused(ttt(R"(,"ttt_base_lr":"1")"), "ttt_base_lr");
  expect_refused(ttt(R"(,"rms_norm_eps":0)"), "rms_norm_eps");
  expect_refused(llama(R"(,"attention_bias":true)"), "attention_bias");
  expect_refused(llama(R"(,"mlp_bias":true)"), "mlp_bias");
  expect_refused(llama(R"(,"num_key_value_heads":3)"), "num_key_value_heads");
  expect_refused(llama(R"(,"head_dim":32)"), "head_dim");
  const TemporaryDirectory empty;
  expect_error(ExitCode::kMissingInput, "config.json", [&] { (void)read_hf_config(empty.str()); });
}

}  // namespace
}  // namespace ttt::data
