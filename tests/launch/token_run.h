#pragma once
// A run of a tiny model on tokens of its own, for tests of the trainer and its reader.

#include <filesystem>

#include "configs/run_config.h"
#include "core/base/rng.h"
#include "data/tokens/token_file.h"
#include "tests/launch/temporary_directory.h"

namespace ttt::test {

class TokenRun {
 public:
  TokenRun() {
    constexpr std::int64_t kWords = 17;
    data::TokenShardWriter writer(directory_.file("train.h5"), kWords, 1, 2);
    std::vector<std::int32_t> ids(1000);
    const CounterRng rng(7, "tokens");
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<std::int32_t>(rng.bits(i) % kWords);
    }
    writer.append_document(ids);
    writer.finish();
    // The shapes of the fused kernels, with a short last mini-batch; several micro-batches a shard.
    for (const char* field :
         {"model.vocab_size=17", "model.hidden_size=64", "model.intermediate_size=32",
          "model.num_layers=1", "model.num_heads=1", "data.context_length=19",
          "optimizer.warmup_steps=0", "train.batch_size=4", "train.micro_batch_size=1",
          "train.steps=5", "train.precision=BF16", "parallel.virtual_shards=2",
          "checkpoint.interval_steps=2", "checkpoint.keep_last=9"}) {
      set(field);
    }
    config_.mutable_data()->add_train(directory_.file("train.h5"));
    config_.set_output_directory(directory_.file("run"));
    std::filesystem::create_directory(directory_.file("run"));
  }

  /// FIELD=VALUE.
  void set(const std::string& field) {
    const std::string problem = config::apply_override(config_, field);
    TTT_CHECK(problem.empty(), "{}", problem);
  }
  [[nodiscard]] const config::RunConfig& config() const { return config_; }

 private:
  TemporaryDirectory directory_;
  config::RunConfig config_;
};

}  // namespace ttt::test
