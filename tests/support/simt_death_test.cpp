// What CUDA leaves undefined ends an emulated kernel, with the lines concerned.

#include <gtest/gtest.h>

#include <functional>
#include <numeric>

#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda {
namespace {

void run_block(unsigned threads, const std::function<void()>& code, std::size_t shared_bytes = 64) {
  simt::run({{1, 1, 1}, {threads, 1, 1}, shared_bytes}, code);
}

int shuffled(int value) { return __shfl_xor_sync(simt::kAllLanes, value, 1); }

TEST(SimtDeathTest, LanesAtDifferentOperations) {
  EXPECT_DEATH(run_block(32,
                         [] {
                           if (threadIdx.x < 16) {
                             __syncthreads();
                           } else {
                             __syncwarp();
                           }
                         }),
               "__syncwarp .simt_death_test.cpp:[0-9]+. meets __syncthreads .*lanes of a warp are");
}

TEST(SimtDeathTest, LanesAtDifferentShuffles) {
  EXPECT_DEATH(run_block(32,
                         [] {
                           if (threadIdx.x % 2 == 0) {
                             shuffled(1);
                           } else {
                             __shfl_sync(simt::kAllLanes, 1, 0);
                           }
                         }),
               "__shfl_sync .* meets __shfl_xor_sync .*thread 1,0,0");
}

// Kernels with two lines: a macro's arguments are all at one.
TEST(SimtDeathTest, LanesAtDifferentLines) {
  const auto kernel = [] {
    if (threadIdx.x % 2 == 0) {
      __shfl_sync(simt::kAllLanes, 1, 0);
    } else {
      __shfl_sync(simt::kAllLanes, 1, 0);
    }
  };
  EXPECT_DEATH(run_block(32, kernel), "__shfl_sync .* meets __shfl_sync .*lanes of a warp are");
}

TEST(SimtDeathTest, WarpsAtDifferentBarriers) {
  const auto kernel = [] {
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  };
  EXPECT_DEATH(run_block(64, kernel), "__syncthreads .* meets __syncthreads .*of a block are");
}

TEST(SimtDeathTest, WarpsThatWaitForEachOther) {
  EXPECT_DEATH(run_block(64,
                         [] {
                           if (threadIdx.x < 32) {
                             __syncthreads();
                           } else {
                             named_barrier(1, 64);
                           }
                         }),
               "32 threads wait at named_barrier .*32 threads wait at __syncthreads .*deadlock");
}

TEST(SimtDeathTest, AThreadThatLeavesTheOthersWaiting) {
  EXPECT_DEATH(run_block(40,
                         [] {
                           if (threadIdx.x == 39) return;
                           __syncthreads();
                         }),
               "39 threads wait at __syncthreads .*\n.*1 threads have ended.*deadlock");
  EXPECT_DEATH(run_block(32,
                         [] {
                           if (threadIdx.x == 0) return;
                           shuffled(1);
                         }),
               "31 threads wait at __shfl_xor_sync .*deadlock");
}

TEST(SimtDeathTest, LanesThatAreNotThere) {
  EXPECT_DEATH(run_block(24, [] { __shfl_xor_sync(simt::kAllLanes, 1, 16); }),
               "lane that the block");
  EXPECT_DEATH(run_block(16,
                         [] {
                           float c[4] = {};
                           const std::uint32_t a[4] = {};
                           mma_m16n8k16(c, a, 0, 0);
                         }),
               "32 lanes");
  EXPECT_DEATH(run_block(32, [] { __syncwarp(0xffffU); }), "mask must name all lanes");
  EXPECT_DEATH(run_block(32, [] { __shfl_sync(0xffffU, 1, 0); }), "mask must name all lanes");
  EXPECT_DEATH(run_block(32, [] { __shfl_sync(simt::kAllLanes, 1, 0, 12); }), "power of two");
}

TEST(SimtDeathTest, NamedBarriersOfNoWarps) {
  EXPECT_DEATH(run_block(64, [] { named_barrier(1, 48); }), "whole warps");
  EXPECT_DEATH(run_block(64, [] { named_barrier(1, 96); }), "whole warps");
  EXPECT_DEATH(run_block(64, [] { named_barrier(16, 64); }), "ids 1 to 15");
  EXPECT_DEATH(run_block(64, [] { named_barrier(3, threadIdx.x < 32 ? 64 : 32); }),
               "two numbers of threads");
}

TEST(SimtDeathTest, AddressesThatAreNotAligned) {
  EXPECT_DEATH(run_block(32,
                         [] {
                           std::uint32_t r[4];
                           ldmatrix_x4(r, dynamic_shared_memory() + 8);
                         }),
               "not aligned to 16 bytes");
  alignas(16) static float source[8];
  EXPECT_DEATH(run_block(32, [] { copy_async_16(dynamic_shared_memory(), source + 1); }),
               "copy_async");
  EXPECT_DEATH(run_block(32, [] { copy_async_4(dynamic_shared_memory() + 2, source); }),
               "copy_async");
  EXPECT_DEATH(run_block(32,
                         [] {
                           auto* shared = reinterpret_cast<float*>(dynamic_shared_memory());
                           store_in_cluster(shared + 1, 0, 1.0F, 2.0F);
                         }),
               "not aligned");
}

TEST(SimtDeathTest, StoresIntoNoBlock) {
  const auto store = [](std::size_t offset, int rank) {
    auto* word = reinterpret_cast<std::uint32_t*>(dynamic_shared_memory() + offset);
    store_in_cluster(word, rank, 1);
  };
  EXPECT_DEATH(run_block(32, [&] { store(64, 0); }), "dynamic shared memory");
  EXPECT_DEATH(run_block(32, [&] { store(0, 1); }), "no such block");
  EXPECT_DEATH(simt::run({{2, 1, 1}, {32, 1, 1}, 64, 2},
                         [&] {
                           if (blockIdx.x == 1) store(0, 0);  // block 0 has left before
                         }),
               "that block has ended");
}

TEST(SimtDeathTest, LaunchesThatNoDeviceAccepts) {
  const auto nothing = [] {};
  EXPECT_DEATH(simt::run({{1, 1, 1}, {1025, 1, 1}}, nothing), "1 to 1024 threads");
  EXPECT_DEATH(simt::run({{1, 1, 1}, {0, 1, 1}}, nothing), "1 to 1024 threads");
  EXPECT_DEATH(simt::run({{1, 1, 1}, {1, 1, 65}}, nothing), "at most 64 along z");
  EXPECT_DEATH(simt::run({{1, 65536, 1}, {1, 1, 1}}, nothing), "at most 65535 blocks");
  EXPECT_DEATH(simt::run({{1, 1, 1}, {1, 1, 1}, 228 * 1024}, nothing), "227 KiB");
  EXPECT_DEATH(simt::run({{6, 1, 1}, {1, 1, 1}, 0, 4}, nothing), "divides the grid");
}

TEST(SimtDeathTest, MailThatDoesNotFit) {
  const auto mail = [](int expected, int sent) {
    simt::run({{2, 1, 1}, {32, 1, 1}, 1024, 2}, [=] {
      auto* const floats = reinterpret_cast<float*>(dynamic_shared_memory());
      auto* const box = reinterpret_cast<Mailbox*>(floats + 128);
      if (threadIdx.x == 0) open_mailbox(box);
      cluster_barrier();
      if (static_cast<int>(threadIdx.x) < sent) {
        send_in_cluster(floats + 2 * threadIdx.x, 1 - cluster_rank(), 1, 2, box);
      }
      if (threadIdx.x == 0) expect_bytes(box, expected);
      wait_for_mail(box, 0);
    });
  };
  mail(64, 8);
  EXPECT_DEATH(mail(64, 7), "wait_for_mail(.|\n)*will not come");
  EXPECT_DEATH(mail(60, 8), "more bytes than it expects");
  EXPECT_DEATH(
      simt::run({{1, 1, 1}, {1, 1, 1}, 64},
                [] { expect_bytes(reinterpret_cast<Mailbox*>(dynamic_shared_memory()), 8); }),
      "has not been opened");
}

// The host may not touch what it did not ask to share; a kernel may.
TEST(SimtDeathTest, HostCodeInDeviceMemory) {
  volatile std::byte* const memory = simt::allocate_device(100);
  EXPECT_DEATH(*memory = std::byte{1}, "");
  {
    const simt::DeviceAccess access;
    *memory = std::byte{1};
    const std::byte got = *memory;
    EXPECT_EQ(got, std::byte{1});
  }
  EXPECT_DEATH(*memory = std::byte{2}, "");
}

}  // namespace
}  // namespace ttt::kernels::cuda
