// Names, shapes and sizes of the published models.

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "configs/run_config.h"
#include "core/model.h"

namespace ttt {
namespace {

using Layout = std::map<std::string, Shape>;

config::RunConfig preset(const std::string& name, const std::vector<std::string>& overrides = {}) {
  return config::load_run_config(fmt::format("{}/configs/pile/{}.textproto", TTT_SOURCE_DIR, name),
                                 overrides, 1);
}

LanguageModel model_of(const std::string& name, const std::vector<std::string>& overrides = {}) {
  const config::RunConfig config = preset(name, overrides);
  return {config.model(), config.data().context_length()};
}

Layout layout_of(const LanguageModel& model) {
  Layout layout;
  for (const Parameter& parameter : model.parameters().all()) {
    layout.emplace(parameter.name, parameter.shape);
  }
  return layout;
}

void expect_layout(const LanguageModel& model, const Layout& expected) {
  const Layout actual = layout_of(model);
  for (const auto& [name, shape] : expected) {
    ASSERT_TRUE(actual.contains(name)) << name;
    EXPECT_EQ(actual.at(name).str(), shape.str()) << name;
  }
  for (const auto& [name, shape] : actual) EXPECT_TRUE(expected.contains(name)) << name;
}

// The names of ttt-lm-pytorch's state_dict.
TEST(ModelLayout, OfTttMlpOnTheMambaBackbone) {
  const Layout expected{{"model.embed_tokens.weight", {32000, 768}},
                        {"model.norm.weight", {768}},
                        {"model.layers.0.conv.norm.weight", {768}},
                        {"model.layers.0.conv.conv.weight", {768, 1, 4}},
                        {"model.layers.0.conv.conv.bias", {768}},
                        {"model.layers.0.seq_norm.weight", {768}},
                        {"model.layers.0.seq_modeling_block.q_proj.weight", {768, 768}},
                        {"model.layers.0.seq_modeling_block.v_proj.weight", {768, 768}},
                        {"model.layers.0.seq_modeling_block.o_proj.weight", {768, 768}},
                        {"model.layers.0.seq_modeling_block.g_proj.weight", {768, 768}},
                        {"model.layers.0.seq_modeling_block.conv_q.weight", {768, 1, 4}},
                        {"model.layers.0.seq_modeling_block.conv_q.bias", {768}},
                        {"model.layers.0.seq_modeling_block.conv_k.weight", {768, 1, 4}},
                        {"model.layers.0.seq_modeling_block.conv_k.bias", {768}},
                        {"model.layers.0.seq_modeling_block.W1", {12, 64, 256}},
                        {"model.layers.0.seq_modeling_block.b1", {12, 1, 256}},
                        {"model.layers.0.seq_modeling_block.W2", {12, 256, 64}},
                        {"model.layers.0.seq_modeling_block.b2", {12, 1, 64}},
                        {"model.layers.0.seq_modeling_block.learnable_ttt_lr_weight", {12, 1, 768}},
                        {"model.layers.0.seq_modeling_block.learnable_ttt_lr_bias", {12, 1}},
                        {"model.layers.0.seq_modeling_block.learnable_token_idx", {16}},
                        {"model.layers.0.seq_modeling_block.ttt_norm_weight", {12, 64}},
                        {"model.layers.0.seq_modeling_block.ttt_norm_bias", {12, 64}},
                        {"model.layers.0.seq_modeling_block.post_norm.weight", {768}},
                        {"model.layers.0.seq_modeling_block.post_norm.bias", {768}},
                        {"model.layers.0.ffn_norm.weight", {768}},
                        {"model.layers.0.mlp.gate_proj.weight", {2048, 768}},
                        {"model.layers.0.mlp.up_proj.weight", {2048, 768}},
                        {"model.layers.0.mlp.down_proj.weight", {768, 2048}}};
  expect_layout(model_of("ttt_mlp_m_125m_2k", {"model.num_layers=1"}), expected);
}

TEST(ModelLayout, OfLlama) {
  Layout expected{{"model.embed_tokens.weight", {32000, 768}},
                  {"model.norm.weight", {768}},
                  {"model.layers.0.seq_norm.weight", {768}},
                  {"model.layers.0.seq_modeling_block.q_proj.weight", {768, 768}},
                  {"model.layers.0.seq_modeling_block.k_proj.weight", {256, 768}},
                  {"model.layers.0.seq_modeling_block.v_proj.weight", {256, 768}},
                  {"model.layers.0.seq_modeling_block.o_proj.weight", {768, 768}},
                  {"model.layers.0.ffn_norm.weight", {768}},
                  {"model.layers.0.mlp.gate_proj.weight", {2048, 768}},
                  {"model.layers.0.mlp.up_proj.weight", {2048, 768}},
                  {"model.layers.0.mlp.down_proj.weight", {768, 2048}}};
  const std::vector<std::string> grouped{"model.num_layers=1", "model.attention.num_kv_heads=4"};
  expect_layout(model_of("llama_125m_2k", grouped), expected);
  expected.emplace("lm_head.weight", Shape{32000, 768});
  expect_layout(model_of("llama_125m_2k", {grouped[0], grouped[1], "model.tie_embeddings=false"}),
                expected);
}

struct Size {
  const char* preset;  // in configs/pile, without the context
  double millions;     // of parameters, as printed
  double gigaflops;    // forward, a token, at context 2048
};

// Totals of arXiv:2407.04620's models, tied embeddings of 32000 tokens. The printed cost of a TTT model leaves
// convolutions out, so it is the same for both backbones.
const Size kSizes[] = {{"ttt_linear_t_125m", 110.3, 0.224},  {"ttt_linear_m_125m", 110.4, 0.224},
                       {"ttt_linear_t_350m", 337.3, 0.683},  {"ttt_linear_m_350m", 337.7, 0.683},
                       {"ttt_linear_t_760m", 733.0, 1.483},  {"ttt_linear_m_760m", 733.6, 1.483},
                       {"ttt_linear_t_1_3b", 1284.9, 2.586}, {"ttt_linear_m_1_3b", 1285.6, 2.586},
                       {"ttt_mlp_t_125m", 114.4, 0.255},     {"ttt_mlp_m_125m", 114.6, 0.255},
                       {"ttt_mlp_t_350m", 348.4, 0.768},     {"ttt_mlp_m_350m", 348.8, 0.768},
                       {"ttt_mlp_t_760m", 757.9, 1.669},     {"ttt_mlp_m_760m", 758.5, 1.669},
                       {"ttt_mlp_t_1_3b", 1307.1, 2.756},    {"ttt_mlp_m_1_3b", 1307.9, 2.756},
                       {"llama_125m", 109.5, 0.257},         {"llama_350m", 335.2, 0.771},
                       {"llama_760m", 728.7, 1.608},         {"llama_1_3b", 1279.9, 2.761}};

TEST(ModelSize, ParametersAreThePublishedTotalsToThePrintedDigit) {
  for (const Size& size : kSizes) {
    for (const char* context : {"_2k", "_8k"}) {
      const auto count = static_cast<double>(
          model_of(std::string(size.preset) + context).parameters().num_parameters());
      EXPECT_DOUBLE_EQ(std::round(count / 1e5) / 10, size.millions) << size.preset << context;
    }
  }
}

TEST(ModelSize, CostIsThePublishedOneWithinOnePercent) {
  for (const Size& size : kSizes) {
    const LanguageModel model = model_of(std::string(size.preset) + "_2k");
    EXPECT_NEAR(model.flops_per_token(2048) / 1e9, size.gigaflops, 0.01 * size.gigaflops)
        << size.preset;
  }
  const std::map<std::string, double> at_8k{{"llama_125m_8k", 0.370},
                                            {"llama_350m_8k", 1.073},
                                            {"llama_760m_8k", 2.061},
                                            {"llama_1_3b_8k", 3.365}};
  for (const auto& [name, gigaflops] : at_8k) {
    EXPECT_NEAR(model_of(name).flops_per_token(8192) / 1e9, gigaflops, 0.01 * gigaflops) << name;
  }
}

TEST(ModelSize, TttCostDoesNotGrowWithTheContext) {
  const LanguageModel model = model_of("ttt_linear_m_125m_2k");
  EXPECT_EQ(model.flops_per_token(2048), model.flops_per_token(32768));
}

}  // namespace
}  // namespace ttt
