// Every fuzz target on its seeds, on thousands of mutations of them, and on the inputs that once went wrong
// (tests/fuzz/corpus/TARGET/). Runs in CI, under sanitizers too.

#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "tests/data/temporary_directory.h"
#include "tests/fuzz/targets.h"

namespace ttt::fuzz {
namespace {

constexpr int kMutationsPerSeed = 1000;

// Damage as storage, networks and editors do it: flipped bits, bytes of all ones, truncation, a zero page, an 8-byte
// field, pieces moved, repeated or dropped.
std::string mutated(std::string bytes, std::mt19937_64& random) {
  const auto below = [&](std::size_t limit) { return limit == 0 ? 0 : random() % limit; };
  const std::size_t rounds = 1 + below(3);
  for (std::size_t round = 0; round < rounds && !bytes.empty(); ++round) {
    const std::size_t at = below(bytes.size());
    const std::size_t length = std::min(bytes.size() - at, 1 + below(64));
    switch (below(8)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 1:
        bytes[at] = static_cast<char>(random());
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        std::fill_n(bytes.begin() + std::ptrdiff_t(at), length, '\0');
        break;
      case 4:
        std::fill_n(bytes.begin() + std::ptrdiff_t(at), std::min(length, std::size_t{8}), '\xff');
        break;
      case 5:
        bytes.insert(below(bytes.size()), bytes.substr(at, length));
        break;
      case 6:
        bytes.erase(at, length);
        break;
      default:
        std::swap(bytes[at], bytes[below(bytes.size())]);
        break;
    }
  }
  return bytes;
}

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
      if (!accepts(target, directory / "work", mutated(seed, random))) ++refused;
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
