#include "data/corpus/large_blocks.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

namespace ttt::data {
namespace {

constexpr std::int64_t kMebi = std::int64_t{1} << 20;

// Of mapped files, in this process.
std::int64_t resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssFile:")) return 1024 * std::stoll(line.substr(8));
  }
  return -1;
}

TEST(LargeBlocks, KeepTheirContentsAndTakeNoMemory) {
  constexpr std::size_t kUsed = 100 * kMebi;
  const std::int64_t before = resident_bytes();
  LargeBlocks blocks;
  auto* const bytes = static_cast<unsigned char*>(blocks.map(kUsed));
  ASSERT_NE(bytes, nullptr);
  for (std::size_t i = 0; i < kUsed; ++i) bytes[i] = static_cast<unsigned char>(i % 251);
  constexpr int kMostWaits = 60'000;
  for (int i = 0; i < kMostWaits && resident_bytes() > before + 10 * kMebi; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_LE(resident_bytes(), before + 10 * kMebi);
  for (std::size_t i = 0; i < kUsed; i += 997) ASSERT_EQ(bytes[i], i % 251);
  EXPECT_TRUE(blocks.unmap(bytes));
  EXPECT_FALSE(blocks.unmap(bytes));
}

TEST(LargeBlocks, ComeAndGoWhilePagesAreGivenBack) {
  LargeBlocks blocks;
  auto* const first = static_cast<char*>(blocks.map(kMebi));
  ASSERT_NE(first, nullptr);
  for (int i = 0; i < 40; ++i) {
    auto* const bytes = static_cast<char*>(blocks.map(kMebi));
    ASSERT_NE(bytes, nullptr);
    first[i] = bytes[i] = static_cast<char>(i);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_EQ(bytes[i], i);
    EXPECT_TRUE(blocks.unmap(bytes));
  }
  for (int i = 0; i < 40; ++i) EXPECT_EQ(first[i], i);
}

TEST(LargeBlocks, WithoutATemporaryDirectoryThereAreNone) {
  const char* const old = std::getenv("TMPDIR");
  const std::string kept = old != nullptr ? old : "";
  ::setenv("TMPDIR", "/nowhere", 1);
  LargeBlocks blocks;
  void* const block = blocks.map(1000);
  kept.empty() ? ::unsetenv("TMPDIR") : ::setenv("TMPDIR", kept.c_str(), 1);
  EXPECT_EQ(block, nullptr);
}

}  // namespace
}  // namespace ttt::data
