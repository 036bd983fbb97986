// Every fuzz target on its seeds, on thousands of mutations of them, and on the inputs that once went wrong
// (tests/fuzz/corpus/TARGET/). Runs in CI, under sanitizers too.

#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "tests/data/temporary_directory.h"
#include "tests/fuzz/targets.h"
#include "tests/support/damage.h"

namespace ttt::fuzz {
namespace {

constexpr int kMutationsPerSeed = 1000;

class FuzzReplay : public ::testing::TestWithParam<Target> {};

TEST_P(FuzzReplay, SeedsAreAcceptedAndMutationsNeverDoHarm) {
  const Target& target = GetParam();
  const data::TemporaryDirectory directory;
  std::filesystem::create_directories(directory / "seeds");
  std::filesystem::create_directories(directory / "work");
  std::mt19937_64 random(20240704);
  int refused = 0;
  for (const std::string& seed : target.seeds(directory / "seeds")) {
    EXPECT_TRUE(accepts(target, directory / "work", seed));
    for (int i = 0; i < kMutationsPerSeed; ++i) {
      SCOPED_TRACE(i);
      if (!accepts(target, directory / "work", damaged(seed, random))) ++refused;
    }
  }
  EXPECT_GT(refused, 0) << "no mutation was ever noticed";
}

TEST_P(FuzzReplay, InputsThatOnceWentWrong) {
  const data::TemporaryDirectory directory;
  const std::string corpus = std::string(TTT_SOURCE_DIR) + "/tests/fuzz/corpus/" + GetParam().name;
  if (!std::filesystem::exists(corpus)) return;  // this target has none
  for (const auto& entry : std::filesystem::directory_iterator(corpus)) {
    SCOPED_TRACE(entry.path());
    EXPECT_NO_THROW(
        (void)accepts(GetParam(), directory.str(), data::contents_of(entry.path().string())));
  }
}

INSTANTIATE_TEST_SUITE_P(Readers, FuzzReplay, ::testing::ValuesIn(targets()),
                         [](const auto& target) { return target.param.name; });

}  // namespace
}  // namespace ttt::fuzz
