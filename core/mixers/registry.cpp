// The one place that knows all mixers.

#include "core/mixers/attention_core.h"
#include "core/mixers/linear_attention_core.h"
#include "core/mixers/qkv_mixer.h"
#include "core/mixers/ttt_core.h"

namespace ttt {

std::unique_ptr<SequenceCore> make_core(ParameterStore& store, const std::string& prefix,
                                        const config::ModelConfig& config,
                                        std::int64_t context_length, std::int64_t layer) {
  switch (config.mixer()) {
    case config::TTT_LINEAR:
    case config::TTT_MLP:
      return std::make_unique<TttCore>(store, prefix, config, context_length, layer);
    case config::ATTENTION:
      return std::make_unique<AttentionCore>(store, config);
    case config::LINEAR_ATTENTION:
      return std::make_unique<LinearAttentionCore>(store, config);
  }
  TTT_CHECK(false, "unknown mixer {}", static_cast<int>(config.mixer()));
}

}  // namespace ttt
