// What CUDA leaves undefined ends an emulated kernel, with the lines concerned.

#include <gtest/gtest.h>

#include <functional>
#include <numeric>

#include "core/base/capture.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/simt.h"
#include "tests/support/tensors.h"

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

// What a capture leaves to numbers on a device.
class SimtCaptureDeathTest : public testing::Test {
 protected:
  static Tensor pinned(std::int64_t count) {
    const memory::Scope scope({"tests"}, memory::Place::kPinned);
    return {{count}, DType::kF32};
  }
  static Tensor on_device(std::int64_t count) {
    const memory::Scope scope({"tests"}, memory::Place::kDevice);
    return {{count}, DType::kF32};
  }

  // What `work` queues.
  std::unique_ptr<CapturedWork> capture(const std::function<void()>& work) {
    Capture capture(stream_, reserve_);
    work();
    return capture.end();
  }

  Stream stream_ = make_stream(0);
  memory::Reserve reserve_;
};

TEST_F(SimtCaptureDeathTest, WorkRunsWhenItIsReplayed) {
  const Tensor x = pinned(4);
  ttt::fill(x, 1);
  const auto work = capture([&] { cuda::fill(x, 2, stream_); });
  EXPECT_EQ(x.data<float>()[3], 1);
  work->replay();
  EXPECT_EQ(x.data<float>()[3], 2);
  ttt::fill(x, 3);
  work->replay();
  EXPECT_EQ(x.data<float>()[3], 2);
}

TEST_F(SimtCaptureDeathTest, NeedsAQueueThatCaptures) {
  const Stream cpu;
  EXPECT_NE(test::error_of([&] {
              const Capture capture(cpu, reserve_);
            }).find("a stream that keeps no work"),
            std::string::npos);
}

TEST_F(SimtCaptureDeathTest, AnErrorGivesTheCaptureUp) {
  const Tensor x = pinned(4);
  ttt::fill(x, 1);
  EXPECT_EQ(test::error_of([&] {
              (void)capture([&] {
                cuda::fill(x, 2, stream_);
                fail(ExitCode::kUsage, "enough");
              });
            }),
            "enough");
  EXPECT_EQ(x.data<float>()[0], 1);  // neither done nor kept for the next capture
  const auto work = capture([&] { cuda::fill(x.view().slice(1, 2), 3, stream_); });
  work->replay();
  EXPECT_EQ(x.data<float>()[0], 1);
  EXPECT_EQ(x.data<float>()[1], 3);
}

TEST_F(SimtCaptureDeathTest, TheHostDoesNotWait) {
  const auto error = test::error_of([&] { (void)capture([&] { stream_.synchronize(); }); });
  EXPECT_NE(error.find("the host waits for the queue during a capture"), std::string::npos);
  stream_.synchronize();  // the capture was given up
}

TEST_F(SimtCaptureDeathTest, TheHostTouchesNoPinnedMemory) {
  const Tensor x = pinned(4);
  EXPECT_DEATH((void)capture([&] { x.data<float>()[0] = 1; }), "");
  x.data<float>()[0] = 1;
}

TEST_F(SimtCaptureDeathTest, MemoryThatWasGivenBackIsGone) {
  Tensor x = on_device(4);
  const auto work = capture([&] { cuda::fill(x, 2, stream_); });
  work->replay();
  x = {};
  EXPECT_DEATH(work->replay(), "");
}

TEST_F(SimtCaptureDeathTest, WhatIsMadeInACaptureStays) {
  const Tensor result = pinned(4);
  const auto work = capture([&] {
    const Tensor x = on_device(4);
    cuda::fill(x, 5, stream_);
    cuda::copy(x, result, stream_);
  });
  const Tensor other = on_device(4);
  cuda::fill(other, 6, stream_);
  work->replay();
  EXPECT_EQ(result.data<float>()[0], 5);
  cuda::copy(other, result, stream_);
  EXPECT_EQ(result.data<float>()[0], 6);
}

}  // namespace
}  // namespace ttt::kernels::cuda
