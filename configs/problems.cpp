// What can be wrong with a configuration's values, found before anything is allocated.

#include <algorithm>
#include <cctype>
#include <cmath>
#include <set>

#include "configs/run_config.h"
#include "configs/sequence_split.h"
#include "core/base/error.h"

namespace ttt::config {
namespace {

class Problems {
 public:
  template <typename T>
  void add(const char* field, const T& value, const std::string& reason) {
    lines_.push_back(fmt::format("{} = {}: {}", field, value, reason));
  }
  void at_least(const char* field, std::int64_t value, std::int64_t smallest) {
    if (value < smallest) add(field, value, fmt::format("must be at least {}", smallest));
  }
  void at_least_zero(const char* field, double value) {
    if (!(value >= 0) || !std::isfinite(value)) add(field, value, "must be a number >= 0");
  }
  void positive(const char* field, double value) {
    if (!(value > 0) || !std::isfinite(value)) add(field, value, "must be a number > 0");
  }
  void below_one(const char* field, double value) {
    if (!(value >= 0 && value < 1)) add(field, value, "must be in [0, 1)");
  }
  void append(const std::vector<std::string>& lines) {
    lines_.insert(lines_.end(), lines.begin(), lines.end());
  }
  [[nodiscard]] const std::vector<std::string>& lines() const { return lines_; }

 private:
  std::vector<std::string> lines_;
};

bool is_power_of_two(std::int64_t value) { return value > 0 && (value & (value - 1)) == 0; }

// Largest sizes that 64-bit counts and a sane machine allow; a typing error is caught here rather
// than by the allocator.
constexpr std::int64_t kMaxWidth = std::int64_t{1} << 20;
constexpr std::int64_t kMaxVocabulary = std::int64_t{1} << 31;
constexpr std::int64_t kMaxContext = std::int64_t{1} << 30;

void check_heads(const ModelConfig& model, Problems& problems) {
  const std::int64_t width = model.hidden_size();
  const std::int64_t heads = model.num_heads();
  if (heads < 1 || width < 1) return;
  if (width % heads != 0) {
    problems.add("model.num_heads", heads, fmt::format("must divide hidden_size = {}", width));
    return;
  }
  const bool uses_rope =
      model.mixer() == ATTENTION || (model.mixer() != LINEAR_ATTENTION && model.ttt().rope());
  if (uses_rope && width / heads % 2 != 0) {
    problems.add(
        "model.num_heads", heads,
        fmt::format("gives head dim {}, but rotary embedding needs an even one", width / heads));
  }
  const std::int64_t kv_heads = model.attention().num_kv_heads();
  if (model.mixer() == ATTENTION && kv_heads != 0) {
    if (kv_heads < 0 || heads % kv_heads != 0) {
      problems.add("model.attention.num_kv_heads", kv_heads,
                   fmt::format("must divide num_heads = {}", heads));
    } else if (model.share_qk() && kv_heads != heads) {
      problems.add("model.attention.num_kv_heads", kv_heads,
                   fmt::format("must be num_heads = {} when q and k are shared", heads));
    }
  }
}

void check_batch(const RunConfig& config, int world_size, Problems& problems) {
  const std::int64_t batch = config.train().batch_size();
  const std::int64_t micro_batch = config.train().micro_batch_size();
  const std::int64_t shards = config.parallel().virtual_shards();
  problems.at_least("train.batch_size", batch, 1);
  problems.at_least("train.micro_batch_size", micro_batch, 1);
  problems.at_least("parallel.virtual_shards", shards, 1);
  if (batch < 1 || micro_batch < 1 || shards < 1) return;
  if (batch % shards != 0) {
    problems.add("parallel.virtual_shards", shards,
                 fmt::format("must divide train.batch_size = {}", batch));
  } else if (batch / shards % micro_batch != 0) {
    problems.add("train.micro_batch_size", micro_batch,
                 fmt::format("must divide the {} sequences of a virtual shard (train.batch_size / "
                             "parallel.virtual_shards = {} / {})",
                             batch / shards, batch, shards));
  }
  const std::int64_t sequence_ranks = config.parallel().sequence_ranks();
  if (sequence_ranks < 1 || world_size % sequence_ranks != 0) return;
  const std::int64_t ranks = world_size / sequence_ranks;  // that share the batch
  const char* kind = sequence_ranks > 1 ? "data ranks" : "ranks";
  if (ranks > shards) {
    problems.add("parallel.virtual_shards", shards,
                 fmt::format("is less than the {} {}; use at least one shard a rank", ranks, kind));
  } else if (ranks > 1 && (shards % ranks != 0 || !is_power_of_two(shards / ranks))) {
    problems.add("parallel.virtual_shards", shards,
                 fmt::format("must be {} (the {}) times a power of two", ranks, kind));
  }
}

void check_head_exchange(const ModelConfig& model, std::int64_t ranks, Problems& problems) {
  const auto check = [&](const char* name, std::int64_t heads) {
    if (heads < 1 || heads % ranks == 0) return;
    problems.add("parallel.sequence_ranks", ranks,
                 fmt::format("must divide {} = {} with HEAD_EXCHANGE", name, heads));
  };
  check("model.num_heads", model.num_heads());
  if (model.mixer() == ATTENTION && model.attention().num_kv_heads() > 0) {
    check("model.attention.num_kv_heads", model.attention().num_kv_heads());
  }
}

void check_segments(const RunConfig& config, Problems& problems) {
  const ModelConfig& model = config.model();
  const std::int64_t ranks = config.parallel().sequence_ranks();
  const std::int64_t length = config.data().context_length();
  const std::int64_t unit = sequence_unit(config);
  if (length < 1 || unit < 1) return;
  const std::int64_t units = (length + unit - 1) / unit;
  if (units < ranks) {
    problems.add("parallel.sequence_ranks", ranks,
                 fmt::format("data.context_length = {} has {} {}, fewer than one a rank", length,
                             units, unit > 1 ? fmt::format("mini-batches of {}", unit) : "tokens"));
    return;
  }
  // All ranks but the last hand the end of their segment to the next one's convolutions.
  const std::int64_t halo = convolution_halo(model);
  const std::int64_t shortest = units / ranks * unit;
  if (shortest < halo) {
    problems.add("parallel.sequence_ranks", ranks,
                 fmt::format("gives segments of {} tokens; model.conv_kernel = {} needs {}",
                             shortest, model.conv_kernel(), halo));
  }
}

std::vector<std::string> find_data_problems(const DataConfig& data) {
  Problems problems;
  if (data.context_length() < 1 || data.context_length() > kMaxContext) {
    problems.add("data.context_length", data.context_length(),
                 fmt::format("must be between 1 and {}", kMaxContext));
  }
  if (data.reset_at_bos() && data.masked_target() < 0) {
    problems.add("data.reset_at_bos", true,
                 "needs data.masked_target, the id that begins documents");
  }
  std::set<std::string> names;
  for (int i = 0; i < data.sources_size(); ++i) {
    const DataSource& source = data.sources(i);
    const auto field = [&](const char* name) {
      return fmt::format("data.sources[{}].{}", i, name);
    };
    problems.positive(field("weight").c_str(), source.weight());
    const bool is_plain = std::ranges::all_of(source.name(), [](unsigned char c) {
      return c < 128 && (std::isalnum(c) != 0 || c == '_' || c == '-' || c == '.');
    });
    if (source.name().empty() || !is_plain) {
      problems.add(field("name").c_str(), fmt::format("\"{}\"", source.name()),
                   "must be a word of letters, digits, _, - and .");
    } else if (!names.insert(source.name()).second) {
      problems.add(field("name").c_str(), source.name(), "is the name of another source too");
    }
    if (source.train().empty())
      problems.add(field("train").c_str(), "\"\"", "must name token files");
  }
  if (data.sources_size() == 0) return problems.lines();
  if (!data.train().empty()) {
    problems.add("data.train", data.train(0), "is given beside data.sources; make it one of them");
  }
  if (!data.order_file().empty()) {
    problems.add(
        "data.order_file", data.order_file(),
        "numbers the windows of data.train; with data.sources there are several first ones");
  }
  return problems.lines();
}

void check_optimizer(const RunConfig& config, Problems& problems) {
  const OptimizerConfig& optimizer = config.optimizer();
  problems.at_least_zero("optimizer.learning_rate", optimizer.learning_rate());
  problems.at_least_zero("optimizer.end_learning_rate", optimizer.end_learning_rate());
  problems.at_least("optimizer.warmup_steps", optimizer.warmup_steps(), 0);
  problems.at_least("optimizer.decay_steps", optimizer.decay_steps(), 0);
  const std::int64_t decay_steps =
      optimizer.decay_steps() > 0 ? optimizer.decay_steps() : config.train().steps();
  if (optimizer.warmup_steps() > decay_steps) {
    problems.add("optimizer.warmup_steps", optimizer.warmup_steps(),
                 fmt::format("is more than the {} steps of the schedule", decay_steps));
  }
  problems.below_one("optimizer.beta1", optimizer.beta1());
  problems.below_one("optimizer.beta2", optimizer.beta2());
  problems.positive("optimizer.epsilon", optimizer.epsilon());
  problems.at_least_zero("optimizer.weight_decay", optimizer.weight_decay());
  problems.at_least_zero("optimizer.clip_norm", optimizer.clip_norm());
  problems.positive("optimizer.inner_warmup_init", optimizer.inner_warmup_init());
  problems.at_least("optimizer.inner_warmup_steps", optimizer.inner_warmup_steps(), 0);
}

void check_guard(const GuardConfig& guard, Problems& problems) {
  problems.at_least("guard.max_consecutive_skips", guard.max_consecutive_skips(), 0);
  problems.at_least("guard.spike_window", guard.spike_window(), 2);
  problems.positive("guard.spike_deviations", guard.spike_deviations());
  problems.at_least("guard.max_rollbacks", guard.max_rollbacks(), 0);
  problems.at_least("guard.digest_interval_steps", guard.digest_interval_steps(), 0);
  problems.below_one("guard.straggler_score", guard.straggler_score());
}

}  // namespace

std::vector<std::string> find_model_problems(const ModelConfig& model) {
  Problems problems;
  const auto in_range = [&](const char* field, std::int64_t value, std::int64_t largest) {
    if (value < 1 || value > largest) {
      problems.add(field, value, fmt::format("must be between 1 and {}", largest));
    }
  };
  in_range("model.vocab_size", model.vocab_size(), kMaxVocabulary);
  in_range("model.hidden_size", model.hidden_size(), kMaxWidth);
  in_range("model.intermediate_size", model.intermediate_size(), kMaxWidth);
  in_range("model.num_layers", model.num_layers(), kMaxWidth);
  in_range("model.num_heads", model.num_heads(), kMaxWidth);
  if (model.share_qk() || model.pre_conv()) {
    in_range("model.conv_kernel", model.conv_kernel(), kMaxWidth);
  }
  check_heads(model, problems);
  problems.positive("model.rms_norm_epsilon", model.rms_norm_epsilon());
  problems.at_least_zero("model.initializer_range", model.initializer_range());
  problems.positive("model.rope_theta", model.rope_theta());
  if (model.mixer() == TTT_LINEAR || model.mixer() == TTT_MLP) {
    problems.at_least("model.ttt.mini_batch_size", model.ttt().mini_batch_size(), 0);
    problems.positive("model.ttt.base_learning_rate", model.ttt().base_learning_rate());
    if (model.mixer() == TTT_MLP) {
      in_range("model.ttt.mlp_expansion", model.ttt().mlp_expansion(), kMaxWidth);
      if (model.ttt().initial_state() == TttConfig::ZERO) {
        problems.add("model.ttt.initial_state", "ZERO",
                     "an inner MLP that starts at zero never moves; use LEARNED_STATE");
      }
    }
  }
  return problems.lines();
}

std::vector<std::string> find_sequence_problems(const RunConfig& config, int world_size) {
  Problems problems;
  const ModelConfig& model = config.model();
  const std::int64_t ranks = config.parallel().sequence_ranks();
  problems.at_least("parallel.sequence_ranks", ranks, 1);
  if (ranks <= 1) return problems.lines();
  if (world_size % ranks != 0) {
    problems.add("parallel.sequence_ranks", ranks,
                 fmt::format("must divide the {} ranks", world_size));
  }
  if (resolve_sequence_exchange(config) == ParallelConfig::HEAD_EXCHANGE) {
    check_head_exchange(model, ranks, problems);
  } else if (model.mixer() == ATTENTION) {
    problems.add("parallel.sequence_exchange", "STATE_PASSING",
                 "attention has no state to pass; use HEAD_EXCHANGE");
  } else if (sequence_unit(config) == 0) {
    problems.add("parallel.sequence_exchange", "STATE_PASSING",
                 "model.ttt.mini_batch_size = 0 is one mini-batch, which cannot be cut; use "
                 "HEAD_EXCHANGE");
  }
  check_segments(config, problems);
  return problems.lines();
}

std::vector<std::string> find_problems(const RunConfig& config, int world_size) {
  Problems problems;
  problems.append(find_model_problems(config.model()));
  if (config.output_directory().empty()) {
    problems.add("output_directory", "\"\"", "must name a directory");
  }
  problems.append(find_data_problems(config.data()));
  check_batch(config, world_size, problems);
  problems.append(find_sequence_problems(config, world_size));
  problems.at_least("parallel.bucket_elements", config.parallel().bucket_elements(), 1);
  problems.at_least("train.steps", config.train().steps(), 0);
  problems.at_least("train.num_threads", config.train().num_threads(), 0);
  check_optimizer(config, problems);
  problems.at_least("checkpoint.interval_steps", config.checkpoint().interval_steps(), 0);
  problems.at_least("checkpoint.keep_last", config.checkpoint().keep_last(), 1);
  problems.at_least("eval.interval_steps", config.eval().interval_steps(), 0);
  problems.at_least("eval.num_windows", config.eval().num_windows(), 0);
  problems.at_least("eval.micro_batch_size", config.eval().micro_batch_size(), 1);
  problems.at_least("log.interval_steps", config.log().interval_steps(), 1);
  problems.at_least_zero("log.peak_flops", config.log().peak_flops());
  const WatchdogConfig& watchdog = config.watchdog();
  problems.at_least_zero("watchdog.silence_seconds", watchdog.silence_seconds());
  problems.at_least_zero("watchdog.start_seconds", watchdog.start_seconds());
  problems.at_least_zero("watchdog.step_seconds", watchdog.step_seconds());
  problems.at_least_zero("watchdog.evaluation_seconds", watchdog.evaluation_seconds());
  problems.at_least_zero("watchdog.checkpoint_seconds", watchdog.checkpoint_seconds());
  check_guard(config.guard(), problems);
  return problems.lines();
}

}  // namespace ttt::config
