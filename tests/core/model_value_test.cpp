// What a model computes: loss and logits agree, bf16 products are near, inner losses fall, and two mixers that
// are one function give the same numbers.

#include <array>

#include "tests/core/model_cases.h"

namespace ttt {
namespace {

using test::kTokens;
using test::ModelCase;
using test::SmallModel;

double relative_difference(const TensorView& a, const TensorView& b) {
  const std::vector<double> x = test::values_of(a);
  const std::vector<double> y = test::values_of(b);
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    difference += (x[i] - y[i]) * (x[i] - y[i]);
    norm += y[i] * y[i];
  }
  return std::sqrt(difference / norm);
}

// From a zero state the inner LayerNorm sees rows that are zero, where its slope is 1 / sqrt(1e-6) = 1000.
bool is_stiff(const config::ModelConfig& model) {
  return model.ttt().initial_state() == config::TttConfig::ZERO && model.ttt().inner_norm();
}

class ModelValue : public testing::TestWithParam<ModelCase> {};

TEST_P(ModelValue, NllIsOneInAllThreePaths) {
  SmallModel small(GetParam().model, DType::kF64);
  const Tensor trained = small.forward_backward();
  const Tensor evaluated = test::unset(trained.shape(), DType::kF64);
  small.model.evaluate(small.batch(), evaluated, small.context);
  EXPECT_TRUE(test::same_bits(trained, evaluated));

  const Tensor logits = small.model.logits(small.ids, small.context);
  std::vector<double> expected;
  for (std::int64_t i = 0; i < trained.numel(); ++i) {
    const double* row = logits.data<double>() + i * test::kVocabulary;
    double sum = 0;
    for (std::int64_t v = 0; v < test::kVocabulary; ++v) sum += std::exp(row[v]);
    expected.push_back(std::log(sum) - row[small.targets.data<std::int64_t>()[i]]);
  }
  test::expect_close("nll", evaluated.span<double>(), expected, 1e-13);
}

// bf16 has 8 bits: a product's operands are off by at most 2^-9 = 0.2 % each. Two layers of some six products
// in a row, whose norms and inner steps magnify, stay within 4 % of the logits and 30 % of the gradient in norm.
TEST_P(ModelValue, Bf16ProductsAreNear) {
  SmallModel small(GetParam().model, DType::kF32);
  const Tensor logits = small.model.logits(small.ids, small.context);
  small.forward_backward();
  const Tensor gradients = to_dtype(small.gradients, DType::kF32);
  small.context.precision = kernels::Precision::kBF16;
  small.forward_backward();
  const double logits_error =
      relative_difference(small.model.logits(small.ids, small.context), logits);
  const double gradient_error = relative_difference(small.gradients, gradients);
  EXPECT_GT(logits_error, 1e-4);  // the products are in fact rounded
  EXPECT_LT(logits_error, 0.04);
  EXPECT_LT(gradient_error, is_stiff(GetParam().model) ? 1.0 : 0.3);
}

// What is computed in F32 is what is computed in F64, to 2^-24 times the length of the longest chain.
TEST_P(ModelValue, F32IsNearF64) {
  SmallModel small(GetParam().model, DType::kF32);
  SmallModel oracle(GetParam().model, DType::kF64);
  copy(small.model.parameters().values(), oracle.model.parameters().values());
  small.forward_backward();
  oracle.forward_backward();
  EXPECT_LT(relative_difference(small.gradients, oracle.gradients),
            is_stiff(GetParam().model) ? 1e-2 : 2e-5);
}

class InnerLosses final : public InnerLossRecorder {
 public:
  void record(std::int64_t layer, TensorView losses) override {
    layers.push_back(layer);
    const std::int64_t count = losses.numel() / 3;
    for (std::int64_t i = 0; i < losses.numel(); ++i) {
      means.at(static_cast<std::size_t>(i / count)) +=
          losses.data<double>()[i] / static_cast<double>(count);
    }
  }
  std::vector<std::int64_t> layers;
  std::array<double, 3> means{};  // at the weights of the start, before and after the step
};

TEST_P(ModelValue, InnerLossIsRecordedOnceALayerAndFalls) {
  SmallModel small(GetParam().model, DType::kF64);
  InnerLosses recorder;
  small.context.inner_losses = &recorder;
  small.context.inner_lr_multiplier = 0.01;  // where the step is small the loss must fall
  const Tensor logits = small.model.logits(small.ids, small.context);
  const config::Mixer mixer = GetParam().model.mixer();
  if (mixer != config::TTT_LINEAR && mixer != config::TTT_MLP) {
    EXPECT_TRUE(recorder.layers.empty());
    return;
  }
  EXPECT_EQ(recorder.layers, (std::vector<std::int64_t>{0, 1}));
  for (const double mean : recorder.means) EXPECT_TRUE(std::isfinite(mean) && mean > 0);
  EXPECT_LT(recorder.means[2], recorder.means[1]);
  small.context.inner_losses = nullptr;
  EXPECT_TRUE(test::same_bits(small.model.logits(small.ids, small.context), logits));
}

TEST_P(ModelValue, TheMultiplierScalesTheInnerRate) {
  config::ModelConfig config = GetParam().model;
  SmallModel small(config, DType::kF64);
  const Tensor at_one = small.model.logits(small.ids, small.context);
  small.context.inner_lr_multiplier = 0.5;
  const Tensor logits = small.model.logits(small.ids, small.context);
  config.mutable_ttt()->set_base_learning_rate(config.ttt().base_learning_rate() / 2);
  SmallModel halved(config, DType::kF64);
  EXPECT_TRUE(test::same_bits(logits, halved.model.logits(halved.ids, halved.context)));
  const bool is_ttt = config.mixer() == config::TTT_LINEAR || config.mixer() == config::TTT_MLP;
  EXPECT_EQ(test::same_bits(logits, at_one), !is_ttt);
}

INSTANTIATE_TEST_SUITE_P(Models, ModelValue, testing::ValuesIn(test::model_cases()),
                         test::case_name);

// A switch that nothing reads would leave the function as it is. The normaliser of linear attention is divided out
// by post_norm to its epsilon, hence the small bound.
TEST(LanguageModel, EverySwitchChangesTheFunction) {
  std::vector<std::pair<std::string, Tensor>> seen;
  for (ModelCase model_case : test::model_cases()) {
    if (model_case.name.find("MiniBatchOfAll") != std::string::npos) continue;  // WholeSequence
    model_case.model.set_tie_embeddings(true);
    SmallModel small(model_case.model, DType::kF64);
    const Tensor logits = small.model.logits(small.ids, small.context);
    for (const auto& [name, other] : seen) {
      EXPECT_GT(relative_difference(logits, other), 1e-10) << model_case.name << " is " << name;
    }
    seen.emplace_back(model_case.name, logits);
  }
}

TEST(LanguageModel, MoreTokensThanAWholeSequenceMiniBatchAreRefused) {
  const config::ModelConfig config = test::model_of(
      {"vocab_size=17", "hidden_size=8", "num_heads=2", "num_layers=1", "ttt.mini_batch_size=0"});
  SmallModel small(config, DType::kF64);  // for kTokens tokens
  ExitCode code = ExitCode::kOk;
  const Tensor ids = Tensor({1, kTokens + 1}, DType::kI64);
  std::ranges::fill(ids.span<std::int64_t>(), 3);
  const std::string error =
      test::error_of([&] { (void)small.model.logits(ids, small.context); }, &code);
  EXPECT_NE(error.find("whole sequence"), std::string::npos) << error;
  EXPECT_EQ(code, ExitCode::kInternal);
  const auto state = small.model.make_decode_state(1, small.context);
  (void)small.model.extend(test::tokens_of(ids, 0, kTokens), *state, false, small.context);
  EXPECT_NE(test::error_of([&] {
              (void)small.model.extend(test::tokens_of(ids, 0, 1), *state, false, small.context);
            }),
            "");
}

// Rows 1 and 2 of the ablation ladder at a small size.
config::ModelConfig ablation_row(int row, const std::vector<std::string>& changes = {}) {
  std::vector<std::string> overrides{"model.vocab_size=17", "model.hidden_size=24",
                                     "model.intermediate_size=20", "model.num_layers=2",
                                     "model.num_heads=4"};
  overrides.insert(overrides.end(), changes.begin(), changes.end());
  return config::load_run_config(
             fmt::format("{}/configs/ablation/row{}.textproto", TTT_SOURCE_DIR, row), overrides, 1)
      .model();
}

// Theorem 1 of arXiv:2407.04620.
TEST(AblationLadder, BatchGradientDescentFromZeroIsLinearAttention) {
  SmallModel attention(ablation_row(1), DType::kF64);
  SmallModel ttt(ablation_row(2), DType::kF64);
  ASSERT_EQ(attention.gradients.numel(), ttt.gradients.numel());
  ASSERT_TRUE(
      test::same_bits(attention.model.parameters().values(), ttt.model.parameters().values()));
  const Tensor expected = attention.model.logits(attention.ids, attention.context);
  test::expect_close("logits", ttt.model.logits(ttt.ids, ttt.context).span<double>(),
                     expected.span<double>(), 1e-12);
  attention.forward_backward();
  ttt.forward_backward();
  test::expect_close("gradients", ttt.gradients.span<double>(), attention.gradients.span<double>(),
                     1e-12);
}

// Row 2 needs its switches: with any other value of one it is another function. Only rate and token scale, which
// here multiply a token's output by a number, are divided out again by post_norm, to its epsilon.
TEST(AblationLadder, TheSwitchesOfRowTwoAreNeeded) {
  SmallModel attention(ablation_row(1), DType::kF64);
  const Tensor expected = attention.model.logits(attention.ids, attention.context);
  const auto difference = [&](const std::string& change) {
    SmallModel ttt(ablation_row(2, {"model.ttt." + change}), DType::kF64);
    return relative_difference(ttt.model.logits(ttt.ids, ttt.context), expected);
  };
  for (const char* change : {"learning_rate=LEARNED", "mini_batch_size=4", "inner_norm=true",
                             "inner_bias=true", "rope=true", "initial_state=LEARNED_STATE"}) {
    EXPECT_GT(difference(change), 1e-3) << change;
  }
  for (const char* change : {"base_learning_rate=0.5", "token_scale=INVERSE"}) {
    EXPECT_GT(difference(change), 1e-12) << change;
    EXPECT_LT(difference(change), 1e-6) << change;
  }
}

// Row 3 with W1 = 0 is row 2.
TEST(AblationLadder, ALearnedStateOfZeroIsTheZeroState) {
  SmallModel zero(ablation_row(2), DType::kF64);
  SmallModel learned(ablation_row(3), DType::kF64);
  for (const Parameter& parameter : learned.model.parameters().all()) {
    if (parameter.name.ends_with("W1")) fill(parameter.value, 0);
  }
  EXPECT_TRUE(test::same_bits(learned.model.logits(learned.ids, learned.context),
                              zero.model.logits(zero.ids, zero.context)));
}

TEST(LanguageModel, RowWeightsAreTheMeanOfEachRowsMaskedMean) {
  std::vector<double> weight(4);
  set_row_weights(std::vector<double>{1, 0, 1, 0}, 8, weight);
  EXPECT_EQ(weight, (std::vector<double>{1.0 / 16, 0, 1.0 / 16, 0}));
  set_row_weights(std::vector<double>{0, 0, 0, 0}, 8, weight);  // a row without targets counts zero
  EXPECT_EQ(weight, (std::vector<double>{0, 0, 0, 0}));
}

}  // namespace
}  // namespace ttt
