#include "core/base/memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <thread>

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

// The block of `bytes` bytes that comes next, at once given back.
std::byte* next_block(std::int64_t bytes) { return memory::allocate(bytes).get(); }

TEST(MemoryReserve, KeepsItsBlocksFromOthers) {
  memory::release_free_blocks();
  std::byte* reserved = nullptr;
  {
    memory::Reserve reserve;
    {
      const memory::Reserve::Use use(reserve);
      reserved = next_block(5000);
    }
    const auto others = memory::allocate(5000);
    EXPECT_NE(others.get(), reserved);
    const memory::Reserve::Use use(reserve);
    EXPECT_EQ(next_block(5000), reserved);
    EXPECT_NE(next_block(50000), reserved);
    memory::release_free_blocks();
    EXPECT_EQ(next_block(5000), reserved) << "released with the pool's";
  }
#if !defined(__SANITIZE_ADDRESS__)  // which gives every block back at once
  EXPECT_EQ(next_block(5000), reserved) << "not the pool's again";
#endif
}

TEST(MemoryReserve, BlocksReturnToWhereTheyCameFrom) {
  memory::Reserve reserve;
  std::shared_ptr<std::byte> from_pool = memory::allocate(7000);
  std::byte* const pooled = from_pool.get();
  std::shared_ptr<std::byte> kept;
  {
    const memory::Reserve::Use use(reserve);
    from_pool.reset();  // to the pool, not to the reserve
    kept = memory::allocate(70000);
  }
  std::byte* const reserved = kept.get();
  kept.reset();
  EXPECT_NE(next_block(70000), reserved);
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_EQ(next_block(7000), pooled);
#else
  static_cast<void>(pooled);
#endif
}

TEST(MemoryReserve, TheInnermostCounts) {
  memory::Reserve outer, inner;
  const memory::Reserve::Use use_outer(outer);
  std::byte* of_inner = nullptr;
  {
    const memory::Reserve::Use use_inner(inner);
    of_inner = next_block(9000);
  }
  EXPECT_NE(next_block(9000), of_inner);
}

TEST(MemoryReserve, ATensorMayOutliveIt) {
  const std::int64_t live = memory::live_bytes();
  std::shared_ptr<std::byte> block;
  {
    memory::Reserve reserve;
    const memory::Reserve::Use use(reserve);
    block = memory::allocate(3000);
    EXPECT_GT(memory::live_bytes(), live);
  }
  block.reset();
  EXPECT_EQ(memory::live_bytes(), live);
}

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

// A device of 64 KiB and pinned memory without end, in place of the heap.
struct SmallDevice {
  static inline std::int64_t used = 0, cleared = 0;
  static inline bool fails_to_clear = false;
  static inline std::map<std::byte*, std::int64_t> device, pinned;

  static std::byte* allocate_device(std::int64_t bytes) {
    if (used + bytes > 65536) return nullptr;
    used += bytes;
    auto* const block = new std::byte[static_cast<std::size_t>(bytes)];
    device[block] = bytes;
    return block;
  }
  static void release_device(std::byte* block) {
    used -= device.at(block);
    device.erase(block);
    delete[] block;
  }
  static void clear_device(std::byte* block, std::int64_t bytes) {
    if (fails_to_clear) fail(ExitCode::kPeerLost, "the device is lost");
    std::fill_n(block, bytes, std::byte{0});
    cleared += bytes;
  }
  static std::byte* allocate_pinned(std::int64_t bytes) {
    auto* const block = new std::byte[static_cast<std::size_t>(bytes)];
    pinned[block] = bytes;
    return block;
  }
  static void release_pinned(std::byte* block) {
    pinned.erase(block);
    delete[] block;
  }
};

class MemoryOfADevice : public testing::Test {
 protected:
  MemoryOfADevice() {
    SmallDevice::cleared = 0;
    memory::set_block_sources(
        {{},
         {&SmallDevice::allocate_device, &SmallDevice::release_device, &SmallDevice::clear_device},
         {&SmallDevice::allocate_pinned, &SmallDevice::release_pinned}});
  }
  ~MemoryOfADevice() override { memory::set_block_sources({}); }
};

constexpr memory::Purpose kStates{"states", "have fewer"};
constexpr memory::Purpose kWork{"work", "do less"};

TEST_F(MemoryOfADevice, ScopesSayWhereTensorsLie) {
  const Tensor shared({100}, DType::kF64);
  EXPECT_EQ(SmallDevice::device.size() + SmallDevice::pinned.size(), 0U);
  const memory::Scope outer(kWork, memory::Place::kDevice);
  const Tensor a({100}, DType::kF64);
  {
    const memory::Scope inner(kStates, memory::Place::kPinned);
    const Tensor b({100}, DType::kF64);
    EXPECT_EQ(SmallDevice::pinned.size(), 1U);
  }
  const Tensor c({100}, DType::kF64);
  EXPECT_EQ(SmallDevice::device.size(), 2U);
  EXPECT_EQ(SmallDevice::pinned.count(static_cast<std::byte*>(c.view().raw())), 0U);
  std::thread([] {  // a thread of its own has scopes of its own
    const Tensor d({100}, DType::kF64);
  })
      .join();
  EXPECT_EQ(SmallDevice::device.size(), 2U);
}

TEST_F(MemoryOfADevice, BlocksOfOtherSizesMakeRoom) {
  const memory::Scope scope(kWork, memory::Place::kDevice);
  { const Tensor a({6000}, DType::kF64); }
  const Tensor b({7000}, DType::kF64);  // beside `a` there would be no room
  EXPECT_EQ(memory::live_bytes(), 57344);
}

TEST_F(MemoryOfADevice, WithoutRoomTheErrorNamesWhatUsesMostAndWhatHelps) {
  const memory::Scope states(kStates);
  const Tensor a({40000}, DType::kU8);
  const memory::Scope work(kWork, memory::Place::kDevice);
  const Tensor b({60000}, DType::kU8);
  const auto live = memory::live_bytes();
  try {
    const Tensor c({10000}, DType::kU8);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kOutOfMemory);
    EXPECT_STREQ(error.what(),
                 "out of memory: 10240 bytes asked for (work), 102400 bytes in tensors: work 61440 "
                 "bytes, states 40960 bytes. To need less, do less");
  }
  EXPECT_EQ(memory::live_bytes(), live);
}

TEST_F(MemoryOfADevice, ItsSourceMakesItsZeros) {
  const Tensor shared = Tensor::zeros({100}, DType::kF64);
  EXPECT_EQ(SmallDevice::cleared, 0);
  const memory::Scope scope(kWork, memory::Place::kDevice);
  { std::ranges::fill(Tensor({100}, DType::kF64).span<double>(), 1); }  // the same block
  const Tensor zeros = Tensor::zeros({100}, DType::kF64);
  EXPECT_EQ(SmallDevice::cleared, 800);
  for (const double value : zeros.span<double>()) ASSERT_EQ(value, 0.0);
}

TEST_F(MemoryOfADevice, ZerosThatItCannotMakeAreAnErrorAndNoLeak) {
  const memory::Scope scope(kWork, memory::Place::kDevice);
  const auto live = memory::live_bytes();
  SmallDevice::fails_to_clear = true;
  EXPECT_THROW((void)Tensor::zeros({100}, DType::kF64), Error);
  SmallDevice::fails_to_clear = false;
  EXPECT_EQ(memory::live_bytes(), live);
}

TEST_F(MemoryOfADevice, TheSourceStaysWhileTensorsLive) {
  const Tensor a({100}, DType::kF64);
  EXPECT_THROW(memory::set_block_sources({}), Error);
}

TEST(Memory, ANegativeSizeIsRejected) { EXPECT_THROW((void)memory::allocate(-1), Error); }

}  // namespace
}  // namespace ttt
