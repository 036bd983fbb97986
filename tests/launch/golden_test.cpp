// `ttt probe` against recorded numbers of the public PyTorch reference (tests/golden/README.md), in
// float64 and float32, case by case.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "data/interchange/safetensors.h"
#include "launch/probe.h"
#ifdef TTT_TEST_CUDA
#include "tests/support/kernel_check.h"
#endif

namespace ttt::launch {
namespace {

namespace fs = std::filesystem;

// A program that was built elsewhere (tests/gpu_bundle.sh) is told where the tree is.
const char* const kTree = std::getenv("TTT_SOURCE_DIR");
const fs::path kCases = fs::path(kTree != nullptr ? kTree : TTT_SOURCE_DIR) / "tests/golden";

// How far a quantity may be from the recorded one. float64: the limits, which the shortened
// GELU constants of the reference need (1e-9 on values). float32: tests/golden/README.md, 10 to 30
// times the reference's own float32 error, for another order of summation.
struct Limits {
  double value;           // logits, outputs: absolute
  double value_relative;  // and relative to the largest, added
  double gradient;        // |d| / |g|
  double state;           // |d| / |W|
  double loss;            // absolute for one loss, relative for the losses of a run
  double step_loss;       // relative
  double step_norm;       // relative
  double final_weight;    // absolute
};
constexpr Limits kF64{0, 1e-9, 1e-8, 1e-9, 1e-9, 1e-8, 1e-8, 1e-8};
constexpr Limits kF32{1e-4, 0, 1e-4, 2e-6, 1e-5, 3e-6, 3e-5, 1e-5};

bool is_weight(const std::string& name) {
  static const std::set<std::string> others{
      "input_ids",           "labels",         "logits",      "loss",
      "hidden_states",       "output",         "grad_output", "prefill_logits",
      "generated_ids",       "decode_logits",  "tokens",      "loss_masks",
      "step_loss",           "step_grad_norm", "step_lr",     "step_ttt_lr_mult",
      "final_loss_on_batch0"};
  for (const char* prefix : {"grad.", "final.", "cache.", "mid."}) {
    if (name.starts_with(prefix)) return false;
  }
  return !others.contains(name);
}

double max_difference(const Tensor& a, const Tensor& b) {
  const Tensor wide_a = to_dtype(a, DType::kF64);
  const Tensor wide_b = to_dtype(b, DType::kF64);
  double largest = 0;
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    const double difference = std::abs(wide_a.data<double>()[i] - wide_b.data<double>()[i]);
    if (!(difference <= largest)) largest = difference;  // keeps a NaN
  }
  return largest;
}

double norm_difference(const Tensor& a, const Tensor& b) {
  const Tensor wide_a = to_dtype(a, DType::kF64);
  const Tensor wide_b = to_dtype(b, DType::kF64);
  double difference = 0;
  double norm = 0;
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    const double x = wide_a.data<double>()[i];
    const double y = wide_b.data<double>()[i];
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  return std::sqrt(difference / norm);
}

class Golden : public testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  void SetUp() override {
    recorded_ = std::make_unique<data::SafetensorsFile>(
        data::SafetensorsFile::open((kCases / name() / "golden.safetensors").string()));
    directory_ = fs::temp_directory_path() /
                 ("ttt_golden_" + name() + "_" + dtype() + "_" + std::to_string(::getpid()));
    fs::create_directories(directory_);
    fs::copy_file(kCases / name() / "config.json", directory_ / "config.json",
                  fs::copy_options::overwrite_existing);
    std::vector<Tensor> owners;
    std::vector<data::NamedTensor> weights;
    std::vector<data::NamedTensor> inputs;
    for (const std::string& tensor : recorded_->names()) {
      if (tensor.starts_with("grad.") || tensor.starts_with("final.")) continue;
      owners.push_back(recorded_->read(tensor));
      (is_weight(tensor) ? weights : inputs).emplace_back(tensor, owners.back());
    }
    for (auto& input : inputs) {
      if (input.first == "step_ttt_lr_mult") input.first = "ttt_lr_mult";
    }
    data::write_safetensors((directory_ / "model.safetensors").string(), weights);
    data::write_safetensors((directory_ / "input.safetensors").string(), inputs);
    options_.model = directory_.string();
    options_.input = (directory_ / "input.safetensors").string();
    options_.output = (directory_ / "output.safetensors").string();
    options_.dtype = dtype();
#ifdef TTT_TEST_CUDA
    options_.device = "cuda";
#endif
  }
  void TearDown() override { fs::remove_all(directory_); }

  [[nodiscard]] std::string name() const { return std::get<0>(GetParam()); }
  [[nodiscard]] std::string dtype() const { return std::get<1>(GetParam()); }
  [[nodiscard]] const Limits& limits() const { return dtype() == "f64" ? kF64 : kF32; }
  [[nodiscard]] data::SafetensorsFile result() const {
    return data::SafetensorsFile::open(options_.output);
  }

  void expect_values(const data::SafetensorsFile& file, const std::string& tensor, double limit) {
    EXPECT_EQ(file.info(tensor).shape, recorded_->info(tensor).shape) << tensor;
    const Tensor expected = recorded_->read(tensor);
    const double largest = max_difference(expected, Tensor::zeros(expected.shape(), DType::kF64));
    EXPECT_LE(max_difference(file.read(tensor), expected),
              limit + limits().value_relative * largest)
        << tensor;
  }
  // Every recorded tensor of this prefix must have been written.
  int expect_all(const data::SafetensorsFile& file, const std::string& prefix, double limit,
                 double (*difference)(const Tensor&, const Tensor&)) {
    int count = 0;
    for (const std::string& tensor : recorded_->names()) {
      if (!tensor.starts_with(prefix)) continue;
      ++count;
      EXPECT_TRUE(file.has(tensor)) << tensor;
      if (!file.has(tensor)) continue;
      EXPECT_EQ(file.info(tensor).shape, recorded_->info(tensor).shape) << tensor;
      EXPECT_LE(difference(file.read(tensor), recorded_->read(tensor)), limit) << tensor;
    }
    return count;
  }
  void expect_relative(const data::SafetensorsFile& file, const std::string& tensor, double limit) {
    const Tensor actual = to_dtype(file.read(tensor), DType::kF64);
    const Tensor expected = recorded_->read(tensor);
    ASSERT_EQ(actual.numel(), expected.numel()) << tensor;
    for (std::int64_t i = 0; i < actual.numel(); ++i) {
      const double reference = expected.data<double>()[i];
      EXPECT_LE(std::abs(actual.data<double>()[i] - reference), limit * std::abs(reference))
          << tensor << " of step " << i;
    }
  }

  void check_loss() {
    options_.gradients = true;
    probe_loss(options_);
    const data::SafetensorsFile file = result();
    expect_values(file, "logits", limits().value);
    expect_values(file, "loss", limits().loss);
    EXPECT_GT(expect_all(file, "grad.", limits().gradient, norm_difference), 10);
  }
  void check_layer() {
    probe_layer(options_);
    const data::SafetensorsFile file = result();
    expect_values(file, "output", dtype() == "f64" ? 0 : 3e-5);
    EXPECT_GT(expect_all(file, "grad.", limits().gradient, norm_difference), 10);
    EXPECT_GE(expect_all(file, "final.", limits().state, norm_difference), 2);
  }
  void check_generation() {
    options_.max_new_tokens = recorded_->info("decode_logits").shape[1];
    probe_generate(options_);
    const data::SafetensorsFile file = result();
    expect_values(file, "prefill_logits", limits().value);
    expect_values(file, "decode_logits", limits().value);
    const Tensor ids = file.read("generated_ids");
    const Tensor expected = recorded_->read("generated_ids");
    ASSERT_EQ(ids.shape(), expected.shape());
    for (std::int64_t i = 0; i < ids.numel(); ++i) {
      EXPECT_EQ(ids.data<std::int64_t>()[i], expected.data<std::int64_t>()[i]) << "token " << i;
    }
  }
  void check_training() {
    const auto recipe = nlohmann::json::parse(recorded_->metadata().at("optimizer"));
    const std::map<std::string, std::string> fields{{"learning_rate", "lr"},
                                                    {"end_learning_rate", "end_lr"},
                                                    {"warmup_steps", "lr_warmup_steps"},
                                                    {"decay_steps", "lr_decay_steps"},
                                                    {"beta1", "b1"},
                                                    {"beta2", "b2"},
                                                    {"epsilon", "eps"},
                                                    {"weight_decay", "weight_decay"},
                                                    {"clip_norm", "clip_global_norm"}};
    for (const auto& [field, key] : fields) {
      options_.overrides.push_back("optimizer." + field + "=" + recipe.at(key).dump());
    }
    probe_train(options_);
    const data::SafetensorsFile file = result();
    expect_relative(file, "step_loss", limits().step_loss);
    expect_relative(file, "step_grad_norm", limits().step_norm);
    expect_relative(file, "step_lr", 1e-6);
    EXPECT_GT(expect_all(file, "final.model.", limits().final_weight, max_difference), 10);
  }

  fs::path directory_;
  std::unique_ptr<data::SafetensorsFile> recorded_;
  ProbeOptions options_;
};

TEST_P(Golden, ProbeMatchesTheReference) {
  const std::string kind = recorded_->metadata().at("kind");
  if (kind == "model") {
    check_loss();
  } else if (kind == "layer") {
    check_layer();
  } else if (kind == "gen") {
    check_generation();
  } else if (kind == "train") {
    check_training();
  } else {
    FAIL() << "unknown kind " << kind;
  }
}

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kCases)) {
    if (fs::exists(entry.path() / "golden.safetensors")) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Golden, testing::Combine(testing::ValuesIn(case_names()), testing::Values("f64", "f32")),
    [](const auto& test) { return std::get<0>(test.param) + "_" + std::get<1>(test.param); });

TEST(GoldenCases, AreAllThere) { EXPECT_EQ(case_names().size(), 21U); }

}  // namespace
}  // namespace ttt::launch
