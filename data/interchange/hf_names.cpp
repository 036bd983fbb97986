// Which models Hugging Face's classes can express, and what their tensors are called there.

#include <array>

#include "data/interchange/huggingface.h"

namespace ttt::data {
namespace {

void refuse_unless(bool condition, const char* field, const char* expectation) {
  if (!condition) {
    fail(ExitCode::kUsage, "model.{} has no Hugging Face counterpart: {}", field, expectation);
  }
}

void check_published_ttt(const config::TttConfig& ttt) {
  using Ttt = config::TttConfig;
  refuse_unless(ttt.mini_batch_size() > 0, "ttt.mini_batch_size", "it must be above 0");
  refuse_unless(ttt.learning_rate() == Ttt::LEARNED, "ttt.learning_rate", "only LEARNED");
  refuse_unless(ttt.token_scale() == Ttt::INVERSE_PLUS_LEARNED, "ttt.token_scale",
                "only INVERSE_PLUS_LEARNED");
  refuse_unless(ttt.initial_state() == Ttt::LEARNED_STATE, "ttt.initial_state",
                "only LEARNED_STATE");
  refuse_unless(ttt.inner_norm(), "ttt.inner_norm", "only true");
  refuse_unless(ttt.inner_bias(), "ttt.inner_bias", "only true");
  refuse_unless(ttt.mlp_expansion() == 4, "ttt.mlp_expansion", "only 4");
  refuse_unless(ttt.rope(), "ttt.rope", "only true");
}

}  // namespace

void check_exportable(const config::ModelConfig& model) {
  switch (model.mixer()) {
    case config::TTT_LINEAR:
    case config::TTT_MLP:
      return check_published_ttt(model.ttt());
    case config::ATTENTION:
      refuse_unless(!model.use_gate(), "use_gate", "Llama's attention has no gate");
      refuse_unless(!model.share_qk(), "share_qk", "Llama projects q and k separately");
      refuse_unless(!model.pre_conv(), "pre_conv", "Llama has no convolutions");
      return;
    case config::LINEAR_ATTENTION:
      refuse_unless(false, "mixer", "LINEAR_ATTENTION is a step of the ablation ladder");
  }
}

std::string hf_name(const config::ModelConfig& model, const std::string& native_name) {
  std::string name = native_name;
  if (model.mixer() != config::ATTENTION) return name;
  constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kParts = {
      {{".seq_modeling_block.", ".self_attn."},
       {".seq_norm.", ".input_layernorm."},
       {".ffn_norm.", ".post_attention_layernorm."}}};
  for (const auto& [native, llama] : kParts) {
    if (const auto at = name.find(native); at != std::string::npos) {
      name.replace(at, native.size(), llama);
    }
  }
  return name;
}

}  // namespace ttt::data
