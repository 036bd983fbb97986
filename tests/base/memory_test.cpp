#include "core/base/memory.h"

#include <gtest/gtest.h>

#include <cstdint>

#include "core/base/error.h"
#include "core/base/tensor.h"

namespace ttt {
namespace {

TEST(Memory, CountsLiveAndPeakBytes) {
  memory::reset_peak();
  const auto before = memory::live_bytes();
  EXPECT_EQ(memory::peak_bytes(), before);
  {
    const Tensor a({1000}, DType::kF64);
    const auto with_a = memory::live_bytes();
    // Rounding to a block costs at most an eighth.
    EXPECT_GE(with_a - before, 8000);
    EXPECT_LE(with_a - before, 9000);
    { const Tensor b({3000}, DType::kF64); }
    EXPECT_EQ(memory::live_bytes(), with_a);
  }
  EXPECT_EQ(memory::live_bytes(), before);
  EXPECT_GE(memory::peak_bytes() - before, 32000);
  memory::reset_peak();
  EXPECT_EQ(memory::peak_bytes(), before);
}

TEST(Memory, CopiesOfATensorCountOnce) {
  const Tensor a({1000}, DType::kF64);
  const auto live = memory::live_bytes();
  const Tensor b = a;
  EXPECT_EQ(memory::live_bytes(), live);
}

TEST(Memory, BlocksAreAligned) {
  for (const std::int64_t bytes : {0, 1, 513, 100000, 3 << 20}) {
    const auto block = memory::allocate(bytes);
    ASSERT_NE(block, nullptr);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block.get()) % 64, 0U) << bytes;
  }
}

TEST(Memory, ReleasingFreeBlocksKeepsLiveOnes) {
  const Tensor a = Tensor::zeros({1000}, DType::kF64);
  const auto live = memory::live_bytes();
  { const Tensor b({1000}, DType::kF64); }
  memory::release_free_blocks();
  EXPECT_EQ(memory::live_bytes(), live);
  for (const double value : a.span<double>()) ASSERT_EQ(value, 0.0);
}

#if !defined(__SANITIZE_ADDRESS__)  // which gives every block back at once
TEST(Memory, FreeBlocksAreHeldUntilTheyAreReleased) {
  memory::release_free_blocks();
  memory::reset_peak();
  const auto held = memory::peak_held_bytes();
  { const Tensor a({1024}, DType::kF64); }
  EXPECT_EQ(memory::peak_held_bytes(), held + 8192);
  memory::reset_peak();
  EXPECT_EQ(memory::peak_held_bytes(), held + 8192);
  memory::release_free_blocks();
  memory::reset_peak();
  EXPECT_EQ(memory::peak_held_bytes(), held);
}
#endif

// The sanitizers' allocators end the program instead of returning null.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(Memory, AskingForTooMuchIsOutOfMemoryAndLeavesTheCount) {
  const auto live = memory::live_bytes();
  try {
    (void)memory::allocate(std::int64_t{1} << 60);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kOutOfMemory);
  }
  EXPECT_EQ(memory::live_bytes(), live);
}
#endif

TEST(Memory, ANegativeSizeIsRejected) { EXPECT_THROW((void)memory::allocate(-1), Error); }

}  // namespace
}  // namespace ttt
