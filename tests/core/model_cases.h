#pragma once
// Small models of every mixer on every backbone with every switch, and what the model suites share.
//
// A new mixer is tested by being listed in variants_of(); a mixer of the schema that is not listed fails
// ModelCases.CoverEveryMixer.

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "configs/run_config.h"
#include "core/model.h"
#include "tests/support/complex_step.h"
#include "tests/support/tensors.h"

namespace ttt::test {

inline constexpr std::int64_t kVocabulary = 17;
inline constexpr std::int64_t kBatch = 2;
inline constexpr std::int64_t kTokens = 13;    // odd, and no multiple of kMiniBatch
inline constexpr std::int64_t kMiniBatch = 4;  // of TTT, unless the case says otherwise

struct ModelCase {
  std::string name;
  config::ModelConfig model;
  std::int64_t mini_batch = kMiniBatch;  // the grid on which generation is cut
};

inline void PrintTo(const ModelCase& model_case, std::ostream* out) { *out << model_case.name; }

/// A name and the fields under `model.` that it sets.
using Variant = std::pair<std::string, std::vector<std::string>>;

inline config::ModelConfig model_of(const std::vector<std::string>& fields) {
  config::RunConfig config;
  for (const std::string& field : fields) {
    const std::string problem = config::apply_override(config, "model." + field);
    TTT_CHECK(problem.empty(), "{}", problem);
  }
  const std::vector<std::string> problems = config::find_model_problems(config.model());
  TTT_CHECK(problems.empty(), "{}", problems.front());
  return config.model();
}

inline std::vector<Variant> variants_of(config::Mixer mixer) {
  const std::vector<Variant> ttt{
      {"", {}},
      {"ConstantRate", {"ttt.learning_rate=CONSTANT", "ttt.base_learning_rate=0.1"}},
      {"ScaleInverse", {"ttt.token_scale=INVERSE"}},
      {"ScaleOne", {"ttt.token_scale=ONE"}},
      {"NoInnerNorm", {"ttt.inner_norm=false"}},
      {"NoInnerBias", {"ttt.inner_bias=false"}},
      {"NoInnerNormOrBias", {"ttt.inner_norm=false", "ttt.inner_bias=false"}},
      {"WholeSequence", {"ttt.mini_batch_size=0"}},
      {"MiniBatchOfOne", {"ttt.mini_batch_size=1"}},
      {"MiniBatchOfAll", {"ttt.mini_batch_size=13"}},
      {"NoRope", {"ttt.rope=false"}}};
  std::vector<Variant> variants = ttt;
  switch (mixer) {
    case config::TTT_LINEAR:
      variants.push_back({"ZeroState", {"ttt.initial_state=ZERO"}});
      variants.push_back(
          {"ZeroStateNoInnerNorm", {"ttt.initial_state=ZERO", "ttt.inner_norm=false"}});
      return variants;
    case config::TTT_MLP:
      variants.push_back({"Expansion1", {"ttt.mlp_expansion=1"}});
      variants.push_back({"Expansion3", {"ttt.mlp_expansion=3"}});
      return variants;
    case config::ATTENTION:
      return {{"", {}},
              {"Interleaved", {"attention.rope_pairing=INTERLEAVED"}},
              {"GroupedQueries", {"attention.num_kv_heads=2"}},
              {"OneKeyHead", {"attention.num_kv_heads=1", "attention.rope_pairing=INTERLEAVED"}}};
    case config::LINEAR_ATTENTION:
      return {{"", {}},
              {"Elu", {"linear_attention.feature_map=ELU_PLUS_ONE"}},
              {"EluNormalized",
               {"linear_attention.feature_map=ELU_PLUS_ONE", "linear_attention.normalize=true"}}};
  }
  return {};
}

/// The two published backbones, and each flag of the Mamba backbone alone.
inline std::vector<Variant> backbones() {
  return {{"Transformer", {}},
          {"Mamba", {"use_gate=true", "share_qk=true", "pre_conv=true"}},
          {"Gate", {"use_gate=true"}},
          {"ShareQk", {"share_qk=true"}},
          {"PreConv", {"pre_conv=true"}},
          {"ConvOfOne", {"share_qk=true", "pre_conv=true", "conv_kernel=1"}}};
}

inline std::string camel_case(const std::string& name) {
  std::string result;
  for (std::size_t i = 0; i < name.size(); ++i) {
    if (name[i] == '_') continue;
    const bool first = i == 0 || name[i - 1] == '_';
    result += static_cast<char>(first ? name[i] : std::tolower(name[i]));
  }
  return result;
}

/// Every mixer: all variants on both published backbones, each flag alone with the first variant,
/// tied and untied embeddings in turn.
inline std::vector<ModelCase> model_cases() {
  const std::vector<std::string> small{
      "vocab_size=17", "hidden_size=24", "intermediate_size=20", "num_layers=2",
      "num_heads=4",   "conv_kernel=4",  "ttt.mini_batch_size=4"};
  std::vector<ModelCase> cases;
  int index = 0;
  const auto* mixers = config::Mixer_descriptor();
  for (int i = 0; i < mixers->value_count(); ++i) {
    for (const auto& [variant, switches] : variants_of(config::Mixer(mixers->value(i)->number()))) {
      ++index;  // so that the next variant has the other one tied
      for (const auto& [backbone, flags] : backbones()) {
        const bool tied = ++index % 2 == 0;
        const bool published = backbone == "Transformer" || backbone == "Mamba";
        if (!published && !variant.empty()) continue;
        std::vector<std::string> fields = small;
        fields.push_back("mixer=" + mixers->value(i)->name());
        fields.insert(fields.end(), switches.begin(), switches.end());
        fields.insert(fields.end(), flags.begin(), flags.end());
        // q and k have as many heads when they share a projection.
        const bool grouped = variant == "GroupedQueries" || variant == "OneKeyHead";
        if (grouped && backbone == "Mamba") fields.emplace_back("share_qk=false");
        ModelCase result;
        result.name = camel_case(mixers->value(i)->name()) + variant + backbone;
        fields.emplace_back(tied ? "tie_embeddings=true" : "tie_embeddings=false");
        result.name += tied ? "Tied" : "Untied";
        result.model = model_of(fields);
        if (result.model.ttt().mini_batch_size() > 0) {
          result.mini_batch = result.model.ttt().mini_batch_size();
        }
        cases.push_back(result);
      }
    }
  }
  return cases;
}

/// Of these every mixer as published, on both backbones.
inline std::vector<ModelCase> published_cases() {
  std::vector<ModelCase> cases = model_cases();
  std::erase_if(cases, [](const ModelCase& one) {
    const std::string mixer = camel_case(config::Mixer_Name(one.model.mixer()));
    return !one.name.starts_with(mixer + "Transformer") && !one.name.starts_with(mixer + "Mamba");
  });
  return cases;
}

inline std::string case_name(const testing::TestParamInfo<ModelCase>& info) {
  return info.param.name;
}

/// A model with generic weights, its gradients, and a batch with masked tokens.
class SmallModel {
 public:
  SmallModel(const config::ModelConfig& config, DType dtype, std::int64_t tokens = kTokens,
             std::int64_t batch = kBatch)
      : model(config, kTokens),
        ids({batch, tokens}, DType::kI64),
        targets(ids.shape(), DType::kI64) {
    ParameterStore& store = model.parameters();
    store.allocate(dtype);
    for (const Parameter& parameter : store.all()) set_generic(parameter);
    gradients = Tensor::zeros({store.num_elements()}, dtype);
    store.bind_gradients(gradients);
    weight = Tensor(ids.shape(), DType::kF64);
    const CounterRng rng(7, "batch");
    for (std::int64_t i = 0; i < ids.numel(); ++i) {
      ids.data<std::int64_t>()[i] = random_id(rng, 2 * i);
      targets.data<std::int64_t>()[i] = random_id(rng, 2 * i + 1);
      // Every fifth token is masked; the others count differently.
      weight.data<double>()[i] = i % 5 == 3 ? 0.0 : (1.0 + static_cast<double>(i % 3)) / 40.0;
    }
  }

  [[nodiscard]] TokenBatch batch() const { return {ids, targets, weight}; }
  /// Gradients of one batch, from zero; nll [B, T].
  Tensor forward_backward(bool recompute_blocks = false) {
    const Tensor nll = unset(ids.shape(), DType::kF64);
    fill(gradients, 0);
    model.forward_backward(batch(), nll, recompute_blocks, context);
    return nll;
  }
  [[nodiscard]] double loss() {
    const Tensor nll = unset(ids.shape(), DType::kF64);
    model.evaluate(batch(), nll, context);
    double sum = 0;
    for (std::int64_t i = 0; i < nll.numel(); ++i) {
      sum += weight.data<double>()[i] * nll.data<double>()[i];
    }
    return sum;
  }

  LanguageModel model;
  Tensor ids, targets, weight, gradients;
  Stream stream;
  Context context{stream};

 private:
  static std::int64_t random_id(const CounterRng& rng, std::int64_t index) {
    return static_cast<std::int64_t>(rng.bits(static_cast<std::uint64_t>(index)) % kVocabulary);
  }
  // No weight is zero or one: at the initial values of biases and norms, wrong terms cancel. The token
  // offsets stay small, off the kink of max(0, 1/i + offset).
  static void set_generic(const Parameter& parameter) {
    const std::vector<double> noise = random_values(parameter.name, parameter.shape.numel());
    const bool is_offset = parameter.name.ends_with("token_idx");
    std::vector<double> values(noise.size());
    for (std::size_t i = 0; i < noise.size(); ++i) {
      values[i] = is_offset
                      ? 0.01 * noise[i]
                      : 0.3 * noise[i] + (parameter.initializer.kind == Initializer::Kind::kConstant
                                              ? parameter.initializer.value
                                              : 0.0);
    }
    copy(tensor_of(values, parameter.shape, DType::kF64), parameter.value);
  }
};

inline bool same_bits(const TensorView& a, const TensorView& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.raw(), b.raw(), static_cast<std::size_t>(a.num_bytes())) == 0;
}

/// Tokens [begin, end) of every sequence of [B, T] or [B, T, V], gathered.
inline Tensor tokens_of(const Tensor& tensor, std::int64_t begin, std::int64_t end) {
  const std::int64_t batch = tensor.size(0);
  const std::int64_t tokens = tensor.size(1);
  const std::int64_t row = tensor.numel() / (batch * tokens);
  const Tensor part(
      tensor.shape().rank() == 2 ? Shape{batch, end - begin} : Shape{batch, end - begin, row},
      tensor.dtype());
  const auto bytes = static_cast<std::size_t>(row * size_of(tensor.dtype()));
  for (std::int64_t b = 0; b < batch; ++b) {
    const auto* from = static_cast<const std::byte*>(tensor.view().raw()) +
                       static_cast<std::size_t>(b * tokens + begin) * bytes;
    auto* to = static_cast<std::byte*>(part.view().raw()) +
               static_cast<std::size_t>(b * (end - begin)) * bytes;
    std::memcpy(to, from, static_cast<std::size_t>(end - begin) * bytes);
  }
  return part;
}

}  // namespace ttt::test
