// Every preset of the repository is valid, and what is written out reads back.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "configs/run_config.h"
#include "core/base/error.h"

namespace ttt::config {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> presets() {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::recursive_directory_iterator(fs::path(TTT_SOURCE_DIR) / "configs")) {
    if (entry.path().extension() == ".textproto") paths.push_back(entry.path());
  }
  std::ranges::sort(paths);
  return paths;
}

TEST(Presets, AllLoadOnOneAndOnEightRanks) {
  EXPECT_GT(presets().size(), 150U);
  for (const fs::path& path : presets()) {
    for (const int world_size : {1, 2, 4, 8}) {
      EXPECT_NO_THROW(load_run_config(path.string(), {}, world_size)) << path << world_size;
    }
  }
}

// Two runs must not write to one place.
TEST(Presets, NamesAndDirectoriesAreTheirOwn) {
  std::set<std::string> names;
  std::set<std::string> directories;
  for (const fs::path& path : presets()) {
    const RunConfig config = load_run_config(path.string(), {}, 1);
    EXPECT_TRUE(names.insert(config.name()).second) << path;
    EXPECT_TRUE(directories.insert(config.output_directory()).second) << path;
  }
}

TEST(Presets, CompleteTextReadsBack) {
  for (const fs::path& path : presets()) {
    const std::string text = complete_text(load_run_config(path.string(), {}, 1));
    std::vector<std::string> problems;
    EXPECT_EQ(complete_text(parse_run_config(text, "complete", problems)), text) << path;
    EXPECT_EQ(problems, std::vector<std::string>()) << path;
  }
}

TEST(CompleteText, HasEveryFieldWithItsDefault) {
  const std::string text = complete_text(RunConfig());
  for (const char* field :
       {"seed: 0", "mixer: TTT_LINEAR", "learning_rate: LEARNED", "rope_pairing: HALVES",
        "feature_map: IDENTITY", "masked_target: 1", "beta2: 0.95", "precision: FP32",
        "virtual_shards: 8", "keep_last: 2", "num_windows: 128", "peak_flops: 0"}) {
    EXPECT_NE(text.find(field), std::string::npos) << field;
  }
}

TEST(CompleteText, KeepsDoublesAndAwkwardStrings) {
  RunConfig config;
  config.set_seed(18446744073709551615U);
  config.set_output_directory("a \"quoted\\\" path\n\twith caf\xc3\xa9");
  config.mutable_optimizer()->set_learning_rate(0.1 + 0.2);
  config.mutable_optimizer()->set_epsilon(5e-324);
  config.mutable_data()->add_train("first, with a comma");
  config.mutable_data()->add_train("");
  std::vector<std::string> problems;
  const RunConfig back = parse_run_config(complete_text(config), "complete", problems);
  EXPECT_EQ(problems, std::vector<std::string>());
  EXPECT_EQ(back.seed(), config.seed());
  EXPECT_EQ(back.output_directory(), config.output_directory());
  EXPECT_EQ(back.optimizer().learning_rate(), config.optimizer().learning_rate());
  EXPECT_EQ(back.optimizer().epsilon(), config.optimizer().epsilon());
  ASSERT_EQ(back.data().train_size(), 2);
  EXPECT_EQ(back.data().train(0), config.data().train(0));
}

TEST(RunConfigFile, ThatIsMissingIsNamed) {
  try {
    load_run_config("/no/such/file.textproto", {}, 1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kMissingInput);
    EXPECT_NE(std::string(error.what()).find("/no/such/file.textproto"), std::string::npos);
  }
}

TEST(RunConfigFile, MayBeAbsent) { EXPECT_EQ(load_run_config("", {}, 1).train().steps(), 4800); }

}  // namespace
}  // namespace ttt::config
