// Whole models on a CUDA device or its emulator, in bf16 with the fused kernels, against the CPU in fp64.

#include <gtest/gtest.h>

#include "tests/core/model_cases.h"
#include "tests/support/kernel_check.h"

namespace ttt {
namespace {

using test::SmallModel;

// Head dim 64 and mini-batches of 16: the shapes of the fused kernels, with a short last mini-batch.
constexpr std::int64_t kTokens = 37;

config::ModelConfig model_of(const std::string& mixer, bool is_mamba, bool is_tied) {
  std::vector<std::string> fields{"vocab_size=17", "hidden_size=128", "intermediate_size=96",
                                  "num_layers=2",  "num_heads=2",     "mixer=" + mixer};
  if (is_mamba) {
    fields.insert(fields.end(), {"use_gate=true", "share_qk=true", "pre_conv=true"});
  }
  fields.emplace_back(is_tied ? "tie_embeddings=true" : "tie_embeddings=false");
  return test::model_of(fields);
}

struct Case {
  std::string mixer;
  bool is_mamba;
};

class CudaModel : public testing::TestWithParam<Case> {
 protected:
  CudaModel()
      : config_(model_of(GetParam().mixer, GetParam().is_mamba, GetParam().is_mamba)),
        oracle_(config_, DType::kF64, kTokens),
        device_(config_, DType::kF32, kTokens) {
    // Weights of the size that training starts from: with larger ones softmax picks one key, and another in bf16.
    for (SmallModel* small : {&oracle_, &device_}) {
      for (const Parameter& parameter : small->model.parameters().all()) {
        if (parameter.initializer.kind == Initializer::Kind::kConstant) continue;
        const Tensor wide = to_dtype(parameter.value, DType::kF64);
        for (double& value : wide.span<double>()) value *= 0.2;
        copy(wide, parameter.value);
      }
    }
  }

  // Loss and gradients of the device model in `precision` against the oracle.
  void expect_close(kernels::Precision precision, double loss_tolerance,
                    double gradient_tolerance) {
    Stream stream = test::stream();
    Context context{stream, precision};
    const Tensor nll = test::unset(device_.ids.shape(), DType::kF64);
    fill(device_.gradients, 0);
    device_.model.forward_backward(device_.batch(), nll, false, context);
    stream.synchronize();
    const Tensor expected_nll = oracle_.forward_backward();
    double loss = 0;
    double expected = 0;
    for (std::int64_t i = 0; i < nll.numel(); ++i) {
      loss += device_.weight.data<double>()[i] * nll.data<double>()[i];
      expected += oracle_.weight.data<double>()[i] * expected_nll.data<double>()[i];
    }
    EXPECT_NEAR(loss, expected, loss_tolerance * expected);
    double difference = 0;
    double norm = 0;
    for (std::int64_t i = 0; i < device_.gradients.numel(); ++i) {
      const double exact = oracle_.gradients.data<double>()[i];
      const double gap = static_cast<double>(device_.gradients.data<float>()[i]) - exact;
      difference += gap * gap;
      norm += exact * exact;
    }
    EXPECT_LE(std::sqrt(difference / norm), gradient_tolerance);
  }

  config::ModelConfig config_;
  SmallModel oracle_;
  SmallModel device_;
};

// The same formulas in fp32: a few hundred roundings of 6e-8. On the emulator the gradients are within 4e-7 to 1.3e-6, the
// loss within 1e-7.
TEST_P(CudaModel, Float32MatchesTheOracle) {
  expect_close(kernels::Precision::kNative, 1e-6, 5e-6);
}

// Every activation is rounded to 2^-9 relative; two blocks of ten roundings each, at random. On the emulator the gradients
// are within 0.6e-2 to 0.9e-2, with linear attention 1.4e-2, the loss within 1e-3.
TEST_P(CudaModel, BFloat16MatchesTheOracle) { expect_close(kernels::Precision::kBF16, 2e-3, 2e-2); }

TEST_P(CudaModel, GenerationContinuesThePrompt) {
  Stream stream = test::stream();
  Context context{stream, kernels::Precision::kNative};
  const Tensor whole = device_.model.logits(device_.ids, context);
  const auto state = device_.model.make_decode_state(test::kBatch, context);
  (void)device_.model.extend(test::tokens_of(device_.ids, 0, 20), *state, false, context);
  const Tensor logits =
      device_.model.extend(test::tokens_of(device_.ids, 20, 23), *state, true, context);
  stream.synchronize();
  test::expect_close("logits after a prompt of 20", logits.span<float>(),
                     test::tokens_of(whole, 20, 23).span<float>(), 1e-4);
}

class KeptInnerLosses final : public InnerLossRecorder {
 public:
  void record(std::int64_t layer, TensorView losses) override {
    EXPECT_EQ(layer, std::ssize(layers));
    const std::span<const double> values = losses.span<double>();
    layers.emplace_back(values.begin(), values.end());
  }
  std::vector<std::vector<double>> layers;
};

class CudaModelOfTtt : public CudaModel {};

// A device's own memory is closed to the host.
TEST_P(CudaModelOfTtt, InnerLossesReachTheHost) {
  KeptInnerLosses kept[2];
  SmallModel* const models[] = {&oracle_, &device_};
  Stream streams[] = {Stream(), test::stream()};
  for (int i = 0; i < 2; ++i) {
    Context context{streams[i], kernels::Precision::kNative};
    context.inner_losses = &kept[i];
    const Tensor nll = test::unset(models[i]->ids.shape(), DType::kF64);
    models[i]->model.evaluate(models[i]->batch(), nll, context);
    streams[i].synchronize();
  }
  ASSERT_EQ(kept[1].layers.size(), 2U);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    ASSERT_EQ(kept[0].layers[layer].size(), kept[1].layers[layer].size());
    for (std::size_t i = 0; i < kept[0].layers[layer].size(); ++i) {
      const double exact = kept[0].layers[layer][i];
      ASSERT_NEAR(kept[1].layers[layer][i], exact, 5e-6 * std::max(1.0, exact));
    }
  }
}

TEST_P(CudaModel, RecomputeIsBitwiseEqual) {
  Stream stream = test::stream();
  Context context{stream, kernels::Precision::kBF16};
  std::vector<Tensor> runs;
  for (const bool recompute_blocks : {false, true, false}) {
    const Tensor nll = test::unset(device_.ids.shape(), DType::kF64);
    fill(device_.gradients, 0);
    device_.model.forward_backward(device_.batch(), nll, recompute_blocks, context);
    stream.synchronize();
    runs.push_back(to_dtype(device_.gradients, DType::kF32));
  }
  EXPECT_TRUE(test::same_bits(runs[0], runs[1])) << "recomputed blocks";
  EXPECT_TRUE(test::same_bits(runs[0], runs[2])) << "a second run";
}

INSTANTIATE_TEST_SUITE_P(Mixers, CudaModelOfTtt,
                         testing::Values(Case{"TTT_LINEAR", true}, Case{"TTT_MLP", false}),
                         [](const auto& test) { return test.param.mixer; });
INSTANTIATE_TEST_SUITE_P(Mixers, CudaModel,
                         testing::Values(Case{"TTT_LINEAR", true}, Case{"TTT_LINEAR", false},
                                         Case{"TTT_MLP", true}, Case{"TTT_MLP", false},
                                         Case{"ATTENTION", false}, Case{"LINEAR_ATTENTION", false}),
                         [](const auto& test) {
                           return test.param.mixer + (test.param.is_mamba ? "Mamba" : "");
                         });

}  // namespace
}  // namespace ttt
