// That ThreadSanitizer reports what a missing barrier of a kernel lets happen, and only that. SimtRaceFree, in
// tests/support/simt_test.cpp, is the other half: kernels that are right, in the same program.

#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>

#include "kernels/cuda/simt.h"

namespace ttt::kernels::cuda {
namespace {

using Code = std::function<void(float* shared)>;

void run_blocks(unsigned threads, const Code& code, unsigned cluster = 1) {
  simt::run({{cluster, 1, 1}, {threads, 1, 1}, 4096, cluster},
            [&] { code(reinterpret_cast<float*>(dynamic_shared_memory())); });
}

// The kernel runs in a process of its own, which ThreadSanitizer ends with its status when it has reported anything.
class SimtRace : public ::testing::Test {
 protected:
  SimtRace() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }

  static void expect_race(unsigned threads, const Code& code, unsigned cluster = 1) {
    constexpr int kReported = 66;
    EXPECT_EXIT(
        {
          run_blocks(threads, code, cluster);
          std::exit(0);
        },
        ::testing::ExitedWithCode(kReported), "data race");
  }
};

// Every thread writes its element, `between`, and reads another's, `distance` away.
template <typename Between>
Code neighbours(unsigned distance, Between&& between) {
  return [=](float* shared) {
    shared[threadIdx.x] = static_cast<float>(threadIdx.x);
    between();
    const float other = shared[threadIdx.x ^ distance];
    __syncthreads();
    shared[threadIdx.x] = other;
  };
}

TEST_F(SimtRace, OfNoBarrierIsReported) {
  expect_race(64, neighbours(32, [] {}));
}

TEST_F(SimtRace, OfABarrierIsNot) {
  run_blocks(64, neighbours(32, [] { __syncthreads(); }));
  run_blocks(64, neighbours(1, [] { __syncwarp(); }));
  run_blocks(64, neighbours(32, [] { named_barrier(1, 64); }));
}

TEST_F(SimtRace, IsNotHiddenByAShuffle) {
  expect_race(32, neighbours(1, [] { __shfl_xor_sync(simt::kAllLanes, 1.0F, 1); }));
}

TEST_F(SimtRace, IsNotHiddenByAProduct) {
  expect_race(32, neighbours(1, [] {
                float c[4] = {};
                const std::uint32_t a[4] = {};
                mma_m16n8k16(c, a, 0, 0);
              }));
}

TEST_F(SimtRace, BetweenWarpsIsNotHiddenByABarrierOfTheWarp) {
  expect_race(64, neighbours(32, [] { __syncwarp(); }));
}

TEST_F(SimtRace, IsNotHiddenByTheBarrierOfOthers) {
  expect_race(96, neighbours(64, [] {
                if (threadIdx.x < 64) named_barrier(1, 64);
              }));
}

// One reader and one writer; both meet the others before and after.
TEST_F(SimtRace, OfTwoThreadsBetweenBarriersIsReported) {
  const auto meet = [](unsigned reader, unsigned writer) -> Code {
    return [=](float* shared) {
      __syncthreads();
      if (threadIdx.x == writer) shared[0] = 1;
      if (threadIdx.x == reader) shared[1] = shared[0];
      __syncthreads();
    };
  };
  expect_race(128, meet(0, 127));
  expect_race(128, meet(127, 0));
}

TEST_F(SimtRace, OfTheNextRoundsWriteIsReported) {
  expect_race(64, [](float* shared) {
    for (int round = 0; round < 2; ++round) {
      shared[threadIdx.x] = static_cast<float>(round);
      __syncthreads();
      shared[64 + threadIdx.x] = shared[threadIdx.x ^ 32U];  // and no barrier before the next round
    }
  });
}

// The copy may land from the time it is asked for, though the emulator moves the data when it is waited for.
TEST_F(SimtRace, OfACopyIntoWhatIsStillReadIsReported) {
  alignas(16) static const float source[256] = {};
  expect_race(64, [](float* shared) {
    shared[4 * threadIdx.x] = 1;
    __syncthreads();
    shared[512 + threadIdx.x] = shared[4 * (threadIdx.x ^ 32U)];
    copy_async_16(shared + 4 * threadIdx.x, source + 4 * threadIdx.x);
    copy_async_commit();
    __syncthreads();
    copy_async_wait<0>();
  });
}

TEST_F(SimtRace, OfACopyThatNobodyHasWaitedForIsReported) {
  alignas(16) static const float source[256] = {};
  expect_race(64, [](float* shared) {
    copy_async_16(shared + 4 * threadIdx.x, source + 4 * threadIdx.x);
    copy_async_commit();
    __syncthreads();
    copy_async_wait<0>();
    shared[512 + threadIdx.x] = shared[4 * (threadIdx.x ^ 32U)];
  });
}

Code store_to_other_block(const std::function<void()>& between) {
  return [=](float* shared) {
    auto* number = reinterpret_cast<std::uint32_t*>(shared) + threadIdx.x;
    store_in_cluster(number, 1 - cluster_rank(), 1);
    between();
    shared[512 + threadIdx.x] = static_cast<float>(*number);
    cluster_barrier();
  };
}

TEST_F(SimtRace, BetweenBlocksNeedsTheirBarrier) {
  run_blocks(32, store_to_other_block([] { cluster_barrier(); }), 2);
  expect_race(32, store_to_other_block([] { __syncthreads(); }), 2);
}

// Two phases: each block's threads write to their own block, send to the other and wait for its mail.
Code mail_and(const std::function<float(const float* shared)>& read) {
  return [=](float* shared) {
    auto* const box = reinterpret_cast<Mailbox*>(shared + 512);
    if (threadIdx.x == 0) open_mailbox(box);
    cluster_barrier();
    for (int phase = 0; phase < 2; ++phase) {
      shared[threadIdx.x] = 1;
      send_in_cluster(shared + 128 * (phase + 1) + 2 * threadIdx.x, 1 - cluster_rank(), 2, 3, box);
      if (threadIdx.x == 0) expect_bytes(box, 64 * 8);
      wait_for_mail(box, phase);
      const float sum = read(shared + 128 * phase);
      __syncthreads();
      shared[threadIdx.x] = sum;
      __syncthreads();
    }
  };
}

TEST_F(SimtRace, MailOrdersWhatItBringsAlone) {
  run_blocks(64, mail_and([](const float* shared) {
               EXPECT_EQ(shared[128 + threadIdx.x], threadIdx.x % 2 == 0 ? 2.0F : 3.0F);
               return 0.0F;
             }),
             2);
  expect_race(64, mail_and([](const float* shared) { return shared[threadIdx.x ^ 32]; }), 2);
}

}  // namespace
}  // namespace ttt::kernels::cuda
