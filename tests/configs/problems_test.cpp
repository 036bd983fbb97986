// What is wrong with a configuration is all said at once, with field, value and reason; no text crashes the reader.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "configs/run_config.h"
#include "configs/sequence_split.h"
#include "core/base/error.h"

namespace ttt::config {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Loads this text from a file. Returns the message of the error, or "", and checks its code.
std::string error_of_file(const std::string& text) {
  const auto path =
      std::filesystem::temp_directory_path() / fmt::format("ttt_problems_{}.textproto", ::getpid());
  std::ofstream(path, std::ios::binary) << text;
  std::string message;
  try {
    load_run_config(path.string(), {}, 1);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    message = error.what();
  }
  std::filesystem::remove(path);
  return message;
}

std::vector<std::string> problems_of(const std::vector<std::string>& assignments,
                                     int world_size = 1) {
  RunConfig config;
  for (const std::string& assignment : assignments) {
    EXPECT_EQ(apply_override(config, assignment), "");
  }
  return find_problems(config, world_size);
}

TEST(Problems, FiveMistakesGiveFiveMessages) {
  const std::string message = error_of_file(
      "model {\n"
      "  hidden_sise: 768\n"        // no such field
      "  num_layers: \"twelve\"\n"  // wrong type
      "  mixer: TTT_LINAER\n"       // no such value
      "  num_heads: 7\n"            // does not divide
      "}\n"
      "optimizer { beta1: 1.5 }\n");  // impossible
  EXPECT_THAT(message, HasSubstr("has 5 problems:"));
  EXPECT_THAT(message, HasSubstr(":2: unknown field \"hidden_sise\" in ttt.config.ModelConfig; did "
                                 "you mean \"hidden_size\"?"));
  EXPECT_THAT(message, AllOf(HasSubstr(":3: "), HasSubstr("integer"), HasSubstr("\"twelve\"")));
  EXPECT_THAT(message, HasSubstr(":4: unknown value \"TTT_LINAER\" of field \"mixer\"; allowed: "
                                 "TTT_LINEAR, TTT_MLP, ATTENTION, LINEAR_ATTENTION; did you mean "
                                 "\"TTT_LINEAR\"?"));
  EXPECT_THAT(message, HasSubstr("model.num_heads = 7: must divide hidden_size = 768"));
  EXPECT_THAT(message, HasSubstr("optimizer.beta1 = 1.5: must be in [0, 1)"));
}

// The parser notices an enumeration value only at the token after it.
TEST(Problems, OfAnEnumerationValueAreAtItsLine) {
  const std::string message = error_of_file(
      "train {\n"
      "  precision: FP8  # comment\n"
      "\n"
      "}\n"
      "model { mixer: RNN }\n"
      "optimizer { beta1: 5 }\n");
  EXPECT_THAT(message, HasSubstr("has 3 problems:"));
  EXPECT_THAT(message, HasSubstr("optimizer.beta1 = 5: must be in [0, 1)"));
  EXPECT_THAT(message, HasSubstr(":2: unknown value \"FP8\" of field \"precision\""));
  EXPECT_THAT(message, HasSubstr(":5: unknown value \"RNN\" of field \"mixer\""));
}

TEST(Problems, OfOneLineAreAllFound) {
  const std::string message = error_of_file(
      "model { num_layers: \"twel\\\"ve\" mixer: RNN num_heads : 1.5 sise: 3 }\n"
      "\ttrain {\tsteps: ten, precision: FP8 shuffle_order: maybe }\n"
      "checkpoint { keep_last: 0 asynchronous: maybe\n"
      "} optimizer { beta1: 2 beta2: 3 }\n");
  EXPECT_THAT(message, HasSubstr("has 11 problems:")) << message;
  for (const char* const problem :
       {":1: Expected integer, got: \"twel", ":1: unknown value \"RNN\" of field \"mixer\"",
        ":1: Expected integer, got: 1.5", ":1: unknown field \"sise\"",
        ":2: Expected integer, got: ten", ":2: unknown value \"FP8\"",
        ":2: unknown field \"shuffle_order\"",
        ":3: unknown value \"maybe\" of field \"asynchronous\"; allowed: true, false",
        "checkpoint.keep_last = 0: must be", "optimizer.beta1 = 2: must be in [0, 1)",
        "optimizer.beta2 = 3: must be in [0, 1)"}) {
    EXPECT_THAT(message, HasSubstr(problem)) << message;
  }
}

TEST(Problems, OfTheModelAreFound) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases{
      {{"model.vocab_size=0"}, "model.vocab_size = 0: must be between 1 and"},
      {{"model.hidden_size=-1"}, "model.hidden_size = -1: must be between 1 and"},
      {{"model.num_heads=0"}, "model.num_heads = 0: must be between 1 and"},
      {{"model.hidden_size=36"}, "gives head dim 3, but rotary embedding needs an even one"},
      {{"model.mixer=ATTENTION", "model.attention.num_kv_heads=5"},
       "model.attention.num_kv_heads = 5: must divide num_heads = 12"},
      {{"model.mixer=ATTENTION", "model.attention.num_kv_heads=-4"}, "num_kv_heads = -4: must"},
      {{"model.mixer=ATTENTION", "model.attention.num_kv_heads=4", "model.share_qk=true"},
       "must be num_heads = 12 when q and k are shared"},
      {{"model.ttt.mini_batch_size=-1"}, "model.ttt.mini_batch_size = -1: must be at least 0"},
      {{"model.ttt.base_learning_rate=0"}, "model.ttt.base_learning_rate = 0: must be a number"},
      {{"model.mixer=TTT_MLP", "model.ttt.mlp_expansion=0"}, "model.ttt.mlp_expansion = 0"},
      {{"model.mixer=TTT_MLP", "model.ttt.initial_state=ZERO"}, "initial_state = ZERO"},
      {{"model.pre_conv=true", "model.conv_kernel=0"}, "model.conv_kernel = 0"},
      {{"model.rms_norm_epsilon=nan"}, "model.rms_norm_epsilon = nan: must be a number > 0"},
      {{"model.rope_theta=inf"}, "model.rope_theta = inf: must be a number > 0"},
      {{"model.initializer_range=-0.02"}, "model.initializer_range = -0.02: must be a number"}};
  for (const auto& [assignments, expected] : cases) {
    EXPECT_THAT(problems_of(assignments), ElementsAre(HasSubstr(expected))) << assignments.front();
  }
}

TEST(Problems, OfTheRunAreFound) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases{
      {{"output_directory="}, "output_directory = \"\": must name a directory"},
      {{"data.context_length=0"}, "data.context_length = 0: must be between 1 and"},
      {{"train.steps=-1", "optimizer.decay_steps=480"}, "train.steps = -1: must be at least 0"},
      {{"optimizer.warmup_steps=4801"}, "is more than the 4800 steps of the schedule"},
      {{"optimizer.learning_rate=-1"}, "optimizer.learning_rate = -1: must be a number >= 0"},
      {{"optimizer.epsilon=0"}, "optimizer.epsilon = 0: must be a number > 0"},
      {{"optimizer.beta2=1"}, "optimizer.beta2 = 1: must be in [0, 1)"},
      {{"optimizer.clip_norm=nan"}, "optimizer.clip_norm = nan"},
      {{"checkpoint.keep_last=0"}, "checkpoint.keep_last = 0: must be at least 1"},
      {{"eval.micro_batch_size=0"}, "eval.micro_batch_size = 0: must be at least 1"},
      {{"log.interval_steps=0"}, "log.interval_steps = 0: must be at least 1"},
      {{"guard.max_consecutive_skips=-1"}, "max_consecutive_skips = -1: must be at least 0"},
      {{"guard.spike_window=1"}, "guard.spike_window = 1: must be at least 2"},
      {{"guard.spike_deviations=0"}, "guard.spike_deviations = 0: must be a number > 0"},
      {{"guard.max_rollbacks=-1"}, "guard.max_rollbacks = -1: must be at least 0"},
      {{"guard.digest_interval_steps=-1"}, "digest_interval_steps = -1: must be at least 0"},
      {{"guard.straggler_score=1"}, "guard.straggler_score = 1: must be in [0, 1)"}};
  for (const auto& [assignments, expected] : cases) {
    EXPECT_THAT(problems_of(assignments), ElementsAre(HasSubstr(expected))) << assignments.front();
  }
  EXPECT_THAT(problems_of({}), IsEmpty());
}

// Fields that a mixer does not read are not held against it.
TEST(Problems, OfOtherMixersDoNotCount) {
  EXPECT_THAT(problems_of({"model.mixer=LINEAR_ATTENTION", "model.hidden_size=36",
                           "model.ttt.mini_batch_size=-1", "model.attention.num_kv_heads=5"}),
              IsEmpty());
  EXPECT_THAT(problems_of({"model.ttt.initial_state=ZERO", "model.ttt.mlp_expansion=0"}),
              IsEmpty());
}

TEST(Problems, RanksAndShardsFit) {
  const auto shards = [](int count) { return fmt::format("parallel.virtual_shards={}", count); };
  for (const int ranks : {1, 2, 4, 8}) EXPECT_THAT(problems_of({shards(8)}, ranks), IsEmpty());
  EXPECT_THAT(problems_of({shards(6), "train.batch_size=6"}, 3), IsEmpty());
  EXPECT_THAT(problems_of({shards(3), "train.batch_size=3"}, 1), IsEmpty());
  EXPECT_THAT(
      problems_of({shards(8)}, 3),
      ElementsAre("parallel.virtual_shards = 8: must be 3 (the ranks) times a power of two"));
  EXPECT_THAT(problems_of({shards(6), "train.batch_size=6"}, 2),
              ElementsAre(HasSubstr("must be 2 (the ranks) times a power of two")));
  EXPECT_THAT(problems_of({shards(8)}, 16), ElementsAre(HasSubstr("is less than the 16 ranks")));
  EXPECT_THAT(problems_of({shards(7)}, 1),
              ElementsAre("parallel.virtual_shards = 7: must divide train.batch_size = 256"));
  EXPECT_THAT(problems_of({shards(8), "train.micro_batch_size=5"}, 1),
              ElementsAre(HasSubstr("must divide the 32 sequences of a virtual shard")));
  EXPECT_THAT(problems_of({shards(0)}, 1), ElementsAre(HasSubstr("must be at least 1")));
}

TEST(Problems, OfSplitSequencesAreFound) {
  const auto problems = [](int ranks, std::vector<std::string> assignments, int world_size) {
    assignments.push_back(fmt::format("parallel.sequence_ranks={}", ranks));
    return problems_of(assignments, world_size);
  };
  const std::string passing = "parallel.sequence_exchange=STATE_PASSING";
  const std::string heads = "parallel.sequence_exchange=HEAD_EXCHANGE";
  const std::string attention = "model.mixer=ATTENTION";
  EXPECT_THAT(problems(4, {}, 32), IsEmpty());
  EXPECT_THAT(problems(4, {attention}, 4), IsEmpty());
  EXPECT_THAT(problems(5, {"model.mixer=LINEAR_ATTENTION", "data.context_length=7"}, 5), IsEmpty());
  EXPECT_THAT(problems(4, {"model.ttt.mini_batch_size=0", heads}, 4), IsEmpty());
  EXPECT_THAT(problems(3, {}, 0), IsEmpty()) << "the number of ranks is not known";
  EXPECT_THAT(problems(0, {}, 1), ElementsAre(HasSubstr("sequence_ranks = 0: must be at least 1")));
  EXPECT_THAT(problems(3, {}, 4),
              ElementsAre("parallel.sequence_ranks = 3: must divide the 4 ranks"));
  EXPECT_THAT(problems(4, {}, 64),
              ElementsAre(HasSubstr("virtual_shards = 8: is less than the 16 data ranks")));
  EXPECT_THAT(problems(2, {}, 6),
              ElementsAre(HasSubstr("must be 3 (the data ranks) times a power of two")));
  EXPECT_THAT(problems(8, {attention}, 8),
              ElementsAre("parallel.sequence_ranks = 8: must divide model.num_heads = 12 with "
                          "HEAD_EXCHANGE"));
  EXPECT_THAT(problems(4, {attention, "model.attention.num_kv_heads=2"}, 4),
              ElementsAre(HasSubstr("must divide model.attention.num_kv_heads = 2")));
  EXPECT_THAT(problems(2, {attention, passing}, 2),
              ElementsAre(HasSubstr("STATE_PASSING: attention has no state to pass")));
  EXPECT_THAT(problems(2, {"model.ttt.mini_batch_size=0"}, 2),
              ElementsAre(HasSubstr("mini_batch_size = 0 is one mini-batch")));
  EXPECT_THAT(
      problems(4, {"data.context_length=48"}, 4),
      ElementsAre("parallel.sequence_ranks = 4: data.context_length = 48 has 3 mini-batches "
                  "of 16, fewer than one a rank"));
  EXPECT_THAT(problems(4, {"data.context_length=49"}, 4), IsEmpty());
  EXPECT_THAT(
      problems(4, {"data.context_length=3", heads}, 4),
      ElementsAre(HasSubstr("data.context_length = 3 has 3 tokens, fewer than one a rank")));
  EXPECT_THAT(problems(4, {"data.context_length=11", heads, "model.pre_conv=true"}, 4),
              ElementsAre("parallel.sequence_ranks = 4: gives segments of 2 tokens; "
                          "model.conv_kernel = 4 needs 3"));
}

TEST(SequenceBounds, CutBetweenUnitsAndDifferByOneAtMost) {
  EXPECT_THAT(sequence_bounds(128, 16, 4), ElementsAre(0, 32, 64, 96, 128));
  EXPECT_THAT(sequence_bounds(113, 16, 3),
              ElementsAre(0, 32, 80, 113));  // 8 mini-batches, the last of 1
  EXPECT_THAT(sequence_bounds(13, 1, 4), ElementsAre(0, 3, 6, 9, 13));
  EXPECT_THAT(sequence_bounds(13, 4, 1), ElementsAre(0, 13));
}

TEST(LongestWholeDocument, IsARanksShareOrWhatCannotBeCut) {
  const auto longest = [](std::vector<std::string> assignments) {
    RunConfig config;
    for (const std::string& assignment : assignments) {
      EXPECT_EQ(apply_override(config, assignment), "");
    }
    const std::int64_t length = longest_whole_document(config);
    const std::int64_t ranks = config.parallel().sequence_ranks();
    for (const std::int64_t longer : {length + 1, length + 2, length + 17}) {  // which can be cut
      const auto bounds = sequence_bounds(longer, sequence_unit(config), ranks);
      for (std::size_t r = 1; r < bounds.size(); ++r) EXPECT_GT(bounds[r], bounds[r - 1]);
      for (std::size_t r = 1; r + 1 < bounds.size(); ++r) {
        EXPECT_GE(bounds[r] - bounds[r - 1], convolution_halo(config.model()));
      }
    }
    return length;
  };
  const std::string four = "parallel.sequence_ranks=4";
  EXPECT_EQ(longest({"data.context_length=2049", four}), 513);
  EXPECT_EQ(longest({"data.context_length=100", four}), 48);  // 3 mini-batches of 16
  EXPECT_EQ(longest({"data.context_length=100", four, "model.mixer=ATTENTION"}), 25);
  EXPECT_EQ(longest({"data.context_length=30", four, "model.mixer=ATTENTION"}), 8);
  EXPECT_EQ(
      longest({"data.context_length=30", four, "model.mixer=ATTENTION", "model.pre_conv=true"}),
      11);  // parts of 3 tokens for the convolution
  EXPECT_EQ(longest({"data.context_length=90", four, "model.ttt.mini_batch_size=4",
                     "model.share_qk=true", "model.conv_kernel=7"}),
            28);  // parts of two mini-batches
  EXPECT_EQ(longest({"data.context_length=100", "parallel.sequence_ranks=1"}), 100);
}

TEST(HostileText, IsRefusedWithTheUsageCode) {
  std::string binary;
  for (int i = 0; i < 4096; ++i) binary += static_cast<char>(i * 167 + i / 256);
  const std::vector<std::pair<const char*, std::string>> texts{
      {"binary", binary},
      {"a zero byte", std::string("seed: 1\n\0seed: 2\n", 17)},
      {"not UTF-8", "output_directory: \"\xff\xfe\"\n"},
      {"overlong", "name: \"\xc0\xaf\"\n"},
      {"a surrogate", "name: \"\xed\xa0\x80\"\n"},
      {"beyond Unicode", "name: \"\xf4\x90\x80\x80\"\n"},
      {"cut short", "# caf\xc3"},
      {"UTF-16", std::string("s\0e\0e\0d\0:\0 \0001\0", 14)},
      {"open brace", "model {"},
      {"closing brace", "}"},
      {"open string", "name: \"run"},
      {"repeated field", "seed: 1\nseed: 2\n"},
      {"wrong kind of value", "model: 3\n"},
      {"message for a number", "seed { }\n"}};
  for (const auto& [name, text] : texts) {
    EXPECT_THAT(error_of_file(text), HasSubstr("problem")) << name;
  }
}

TEST(HostileText, NamesTheLineThatIsNotUtf8) {
  EXPECT_THAT(error_of_file("seed: 1\nname: \"\xff\"\n"), HasSubstr(":2: this line is not UTF-8"));
  RunConfig config;
  EXPECT_THAT(apply_override(config, "name=\xff"), HasSubstr("--set name...: this is not UTF-8"));
}

TEST(HostileText, OfDeepNestingIsRefused) {
  for (const char* open : {"model { ", "unknown { ", "model < "}) {
    std::string text;
    for (int i = 0; i < 100000; ++i) text += open;
    EXPECT_THAT(error_of_file(text), HasSubstr("problem")) << open;
  }
}

TEST(HostileText, OfTwoMebibytesIsNotRead) {
  EXPECT_THAT(error_of_file(std::string(std::size_t{2} << 20, '\n')),
              HasSubstr("has 2097152 bytes; at most 1048576 are read"));
  EXPECT_EQ(error_of_file(std::string(std::size_t{1} << 20, '\n')), "");
}

TEST(HostileText, WithManyMistakesHasAShortMessage) {
  std::string unknown;
  std::string wrong;
  for (int i = 0; i < 50000; ++i) {
    unknown += "unknown_field: 1\n";
    wrong += "seed: x\n";
  }
  EXPECT_LT(error_of_file(unknown).size(), 10000U);
  EXPECT_LT(error_of_file(wrong).size(), 10000U);
}

TEST(EmptyText, IsTheDefaults) {
  EXPECT_EQ(error_of_file(""), "");
  EXPECT_EQ(error_of_file("# only a comment: caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\n"), "");
}

}  // namespace
}  // namespace ttt::config
