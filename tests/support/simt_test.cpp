// The emulator of tests/support/simt against the definitions of CUDA and the PTX ISA. Compiled with it included first,
// as kernels are. SimtRaceFree tests also run under ThreadSanitizer, where they must be free of races.

#include "kernels/cuda/simt.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <vector>

namespace ttt::kernels::cuda {
namespace {

using Code = std::function<void()>;

void run_block(const dim3& block, const Code& code, std::size_t shared_bytes = 0) {
  simt::run({{1, 1, 1}, {block.x, block.y, block.z}, shared_bytes}, code);
}

unsigned linear_thread() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}

// A[i][j] of the fragment's register r, half h, as table "Matrix Fragments for mma.m16n8k16" has it: element
// i = 2 r + h of a lane is in row `group` unless 2 <= i % 4, and in the right half from i = 4.
struct Place {
  unsigned row, column;
};
Place place_in_a(unsigned lane, unsigned element) {
  return {lane / 4 + (element % 4 >= 2 ? 8U : 0U),
          lane % 4 * 2 + element % 2 + (element >= 4 ? 8U : 0U)};
}
Place place_in_b(unsigned lane, unsigned element) {
  return {lane % 4 * 2 + element % 2 + (element >= 2 ? 8U : 0U), lane / 4};
}
Place place_in_c(unsigned lane, unsigned element) {
  return {lane / 4 + (element >= 2 ? 8U : 0U), lane % 4 * 2 + element % 2};
}

template <typename Matrix>
std::uint32_t packed_pair(const Matrix& matrix, const Place& low, const Place& high) {
  return pack_bf16(matrix[low.row][low.column], matrix[high.row][high.column]);
}

struct Factors {
  float a[16][16], b[16][8], c[16][8];
};

// Small integers, exact in bf16 and in their sums; no two rows or columns alike.
Factors asymmetric_factors() {
  Factors f{};
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) f.a[i][j] = static_cast<float>((3 * i + 5 * j + i * j) % 17 - 8);
    for (int j = 0; j < 8; ++j) f.b[i][j] = static_cast<float>((7 * i + 11 * j + i * j) % 13 - 6);
    for (int j = 0; j < 8; ++j) f.c[i][j] = static_cast<float>(8 * i + j);
  }
  return f;
}

struct Fragments {
  std::uint32_t a[4], b[2];
  float c[4];
};

Fragments fragments_of(const Factors& f, unsigned lane) {
  Fragments result{};
  for (unsigned r = 0; r < 4; ++r) {
    result.a[r] = packed_pair(f.a, place_in_a(lane, 2 * r), place_in_a(lane, 2 * r + 1));
    const Place place = place_in_c(lane, r);
    result.c[r] = f.c[place.row][place.column];
  }
  for (unsigned r = 0; r < 2; ++r) {
    result.b[r] = packed_pair(f.b, place_in_b(lane, 2 * r), place_in_b(lane, 2 * r + 1));
  }
  return result;
}

TEST(SimtRaceFree, MmaIsTheProduct) {
  const Factors f = asymmetric_factors();
  float d[16][8] = {};
  run_block(32, [&] {
    Fragments mine = fragments_of(f, threadIdx.x);
    mma_m16n8k16(mine.c, mine.a, mine.b[0], mine.b[1]);
    for (unsigned i = 0; i < 4; ++i) {
      const Place place = place_in_c(threadIdx.x, i);
      d[place.row][place.column] = mine.c[i];
    }
  });
  for (unsigned i = 0; i < 16; ++i) {
    for (unsigned j = 0; j < 8; ++j) {
      float expected = f.c[i][j];
      for (unsigned k = 0; k < 16; ++k) expected += f.a[i][k] * f.b[k][j];
      EXPECT_EQ(d[i][j], expected) << i << ", " << j;
    }
  }
}

// What kernels/cuda/simt.h says of fragments: two C tiles side by side, packed, are an A fragment.
TEST(Simt, TwoCTilesAreAnAFragment) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    for (unsigned element = 0; element < 8; ++element) {
      const Place in_a = place_in_a(lane, element);
      const Place in_c = place_in_c(lane, element % 4);
      EXPECT_EQ(in_a.row, in_c.row);
      EXPECT_EQ(in_a.column, in_c.column + 8 * (element / 4));
    }
  }
}

TEST(Simt, MmaTruncatesItsSum) {
  std::array<float, 2> sums{};
  run_block(32, [&] {
    for (const float sign : {1.0F, -1.0F}) {
      float c[4] = {sign, sign, sign, sign};
      // One product of +-1.5 * 2^-24 for every element: three quarters of the last place of 1.
      const std::uint32_t a[4] = {threadIdx.x % 4 == 0 ? pack_bf16(sign * 1.5F, 0.0F) : 0, 0, 0, 0};
      mma_m16n8k16(c, a, pack_bf16(std::ldexp(1.0F, -24), 0.0F), 0);
      if (threadIdx.x == 0) sums[sign < 0 ? 1 : 0] = c[0];
    }
  });
  EXPECT_EQ(sums[0], 1.0F);
  EXPECT_EQ(sums[1], -1.0F);
}

TEST(SimtRaceFree, LdmatrixDealsRowsAndTransposesAndStmatrixPutsBack) {
  // Rows apart, 16-byte aligned, matrices interleaved and in reverse.
  constexpr unsigned kPitch = 24;
  std::uint32_t plain[32][4], transposed[32][4];
  std::uint16_t stored[32][8];
  const auto row_of = [](unsigned matrix, unsigned row) {
    return (4 * (7 - row) + matrix) * kPitch;
  };
  run_block(
      32,
      [&] {
        auto* tile = reinterpret_cast<std::uint16_t*>(dynamic_shared_memory());
        const unsigned lane = threadIdx.x;
        std::uint16_t* row = tile + row_of(lane / 8, lane % 8);
        for (unsigned j = 0; j < 8; ++j) row[j] = static_cast<std::uint16_t>(100 * lane + j);
        __syncwarp();
        ldmatrix_x4(plain[lane], row);
        ldmatrix_x4_transposed(transposed[lane], row);
        __syncwarp();
        stmatrix_x4(row, transposed[lane]);
        for (unsigned j = 0; j < 8; ++j) stored[lane][j] = row[j];
      },
      32 * kPitch * sizeof(std::uint16_t));
  const auto element = [](unsigned matrix, unsigned row, unsigned column) {
    return 100 * (8 * matrix + row) + column;
  };
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; ++i) {
      EXPECT_EQ(plain[lane][i], element(i, g, 2 * t) | element(i, g, 2 * t + 1) << 16U);
      EXPECT_EQ(transposed[lane][i], element(i, 2 * t, g) | element(i, 2 * t + 1, g) << 16U);
    }
    for (unsigned j = 0; j < 8; ++j) EXPECT_EQ(stored[lane][j], element(lane / 8, j, lane % 8));
  }
}

TEST(SimtRaceFree, MovmatrixTransposes) {
  std::uint32_t result[32];
  const auto element = [](unsigned row, unsigned column) { return 1000 * row + column; };
  run_block(32, [&] {
    const unsigned g = threadIdx.x / 4, t = threadIdx.x % 4;
    result[threadIdx.x] = movmatrix_transposed(element(g, 2 * t) | element(g, 2 * t + 1) << 16U);
  });
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned g = lane / 4, t = lane % 4;
    EXPECT_EQ(result[lane], element(2 * t, g) | element(2 * t + 1, g) << 16U);
  }
}

TEST(Simt, PackRoundsToNearestEven) {
  const auto low = [](float value) { return low_bf16(pack_bf16(value, -2.0F)); };
  const float place = std::ldexp(1.0F, -7);  // the last of bf16 at 1
  EXPECT_EQ(low(1.0F + 0.5F * place), 1.0F);
  EXPECT_EQ(low(1.0F + 1.5F * place), 1.0F + 2 * place);
  EXPECT_EQ(low(1.0F + 0.51F * place), 1.0F + place);
  EXPECT_EQ(low(-INFINITY), -INFINITY);
  EXPECT_TRUE(std::isnan(low(NAN)));
  EXPECT_EQ(high_bf16(pack_bf16(1.0F, -3.5F)), -3.5F);
  EXPECT_EQ(float_to_bits(1.0F), 0x3f800000U);
  BFloat16 stored;
  store_float(&stored, 0.3F);
  EXPECT_EQ(load_float(stored), static_cast<float>(BFloat16(0.3F)));
}

// shfl.sync of the PTX ISA in its own words: c holds the segment mask and the clamp, and a lane out of range keeps its
// own value.
unsigned shuffle_source(char mode, unsigned lane, unsigned b, unsigned width) {
  const unsigned segment_mask = 32 - width;
  const unsigned clamp = mode == 'u' ? 0 : 31;
  const unsigned max_lane = (lane & segment_mask) | (clamp & ~segment_mask & 31U);
  const unsigned min_lane = lane & segment_mask;
  switch (mode) {
    case 'u':
      return lane - b < 32 && lane - b >= max_lane ? lane - b : lane;
    case 'd':
      return lane + b <= max_lane ? lane + b : lane;
    case 'x':
      return (lane ^ b) <= max_lane ? lane ^ b : lane;
    default:
      return min_lane | (b & ~segment_mask & 31U);
  }
}

TEST(SimtRaceFree, ShufflesReadTheLanesOfTheirDefinition) {
  for (const int width : {1, 2, 4, 8, 16, 32}) {
    for (const unsigned b : {0U, 1U, 3U, 4U, 8U, 17U, 31U}) {
      std::uint64_t index[32];
      double up[32];
      int down[32];
      float exchanged[32];
      run_block(32, [&] {
        const unsigned lane = threadIdx.x;
        index[lane] =
            __shfl_sync(simt::kAllLanes, std::uint64_t{lane} << 40U, static_cast<int>(b), width);
        up[lane] = __shfl_up_sync(simt::kAllLanes, static_cast<double>(lane), b, width);
        down[lane] = __shfl_down_sync(simt::kAllLanes, static_cast<int>(lane), b, width);
        exchanged[lane] =
            __shfl_xor_sync(simt::kAllLanes, static_cast<float>(lane), static_cast<int>(b), width);
      });
      for (unsigned lane = 0; lane < 32; ++lane) {
        const auto source = [&](char mode) {
          return shuffle_source(mode, lane, b, static_cast<unsigned>(width));
        };
        EXPECT_EQ(index[lane] >> 40U, source('i')) << "width " << width << " b " << b;
        EXPECT_EQ(up[lane], source('u')) << "width " << width << " b " << b;
        EXPECT_EQ(down[lane], static_cast<int>(source('d'))) << "width " << width << " b " << b;
        EXPECT_EQ(exchanged[lane], static_cast<float>(source('x')))
            << "width " << width << " b " << b;
      }
    }
  }
}

TEST(SimtRaceFree, ThreadsOfAnyShapeKnowWhoTheyAre) {
  constexpr unsigned kThreads = 7 * 5 * 3;  // three warps and nine lanes
  const simt::Index grid{2, 3, 2};
  std::vector<int> visits(std::size_t{kThreads} * 12);
  simt::run({grid, {7, 5, 3}}, [&] {
    const unsigned thread = linear_thread();
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    EXPECT_EQ(__shfl_sync(simt::kAllLanes, thread, 0), thread / 32 * 32);
    EXPECT_EQ(blockDim.x * blockDim.y * blockDim.z, kThreads);
    __syncthreads();
    ++visits[block * kThreads + thread];
  });
  EXPECT_EQ(visits, std::vector<int>(visits.size(), 1));
}

TEST(SimtRaceFree, BarriersOrderSharedMemory) {
  constexpr unsigned kThreads = 96;
  std::vector<unsigned> sums(kThreads);
  run_block(
      kThreads,
      [&] {
        auto* shared = reinterpret_cast<unsigned*>(dynamic_shared_memory());
        const unsigned thread = threadIdx.x;
        for (unsigned round = 0; round < 3; ++round) {
          shared[thread] = thread + round;
          __syncthreads();
          for (unsigned i = 0; i < kThreads; ++i) sums[thread] += shared[i];
          __syncthreads();
        }
      },
      kThreads * sizeof(unsigned));
  EXPECT_EQ(sums, std::vector<unsigned>(kThreads, 3 * (kThreads * (kThreads - 1) / 2 + kThreads)));
}

// Two pairs of warps hand values on, each pair at its own barriers and as often as it likes.
TEST(SimtRaceFree, NamedBarriersJoinTheirThreadsOnly) {
  std::vector<unsigned> received(128);
  run_block(
      128,
      [&] {
        auto* shared = reinterpret_cast<unsigned*>(dynamic_shared_memory());
        const unsigned pair = threadIdx.x / 64;
        const unsigned lane = threadIdx.x % 32;
        const bool sends = threadIdx.x % 64 < 32;
        const int full = static_cast<int>(1 + 2 * pair), empty = static_cast<int>(2 + 2 * pair);
        for (unsigned round = 0; round < 2 + 3 * pair; ++round) {
          if (sends) shared[pair * 32 + lane] = 10 * round + pair;
          named_barrier(full, 64);
          if (!sends) received[threadIdx.x] += shared[pair * 32 + (lane ^ 5U)];
          named_barrier(empty, 64);
        }
      },
      64 * sizeof(unsigned));
  for (unsigned thread = 0; thread < 128; ++thread) {
    const unsigned expected = thread % 64 < 32 ? 0
                              : thread < 64    ? 0 + 10
                                               : 0 + 10 + 20 + 30 + 40 + 5;
    EXPECT_EQ(received[thread], expected);
  }
}

TEST(SimtRaceFree, CopiesArriveInOrderWhenWaitedFor) {
  alignas(16) const float source[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  float after_copy = 0, first = 0, second = 0, third = 0, last = 0, from_another = 0;
  run_block(
      32,
      [&] {
        auto* shared = reinterpret_cast<float*>(dynamic_shared_memory());
        if (threadIdx.x == 0) {
          shared[0] = 100;
          copy_async_16(shared, source);
          after_copy = shared[0];
          copy_async_commit();
          copy_async_16(shared + 4, source + 4);
          copy_async_commit();
          copy_async_4(shared + 8, source + 11);
          copy_async_wait<1>();
          first = shared[3];
          second = shared[4];
          copy_async_wait<0>();
          second += shared[7];
          third = shared[8];  // never committed, so never waited for
          copy_async_commit();
          copy_async_wait<0>();
          last = shared[8];
        }
        __syncthreads();
        if (threadIdx.x == 31) from_another = shared[5];
      },
      12 * sizeof(float));
  EXPECT_TRUE(std::isnan(after_copy)) << "a copy may land at once";
  EXPECT_EQ(first, 3);
  EXPECT_TRUE(std::isnan(second)) << "one group may be under way";
  EXPECT_TRUE(std::isnan(third));
  EXPECT_EQ(last, 11);
  EXPECT_EQ(from_another, 5);
}

TEST(SimtRaceFree, ClustersOfFourExchange) {
  constexpr unsigned kBlocks = 8, kThreads = 64;
  std::vector<float> floats(std::size_t{kBlocks} * 8);
  std::vector<std::uint32_t> words(std::size_t{kBlocks} * 4);
  simt::run({{kBlocks, 1, 1}, {kThreads, 1, 1}, 64, 4}, [&] {
    auto* pairs = reinterpret_cast<float*>(dynamic_shared_memory());
    auto* numbers = reinterpret_cast<std::uint32_t*>(dynamic_shared_memory() + 32);
    EXPECT_EQ(static_cast<unsigned>(cluster_rank()), blockIdx.x % 4);
    const auto block = static_cast<float>(blockIdx.x);
    const int to = static_cast<int>(threadIdx.x);
    if (to < 4) {
      store_in_cluster(&pairs[2 * cluster_rank()], to, block, 10 * block + static_cast<float>(to));
      store_in_cluster(&numbers[cluster_rank()], to, 100 * blockIdx.x + threadIdx.x);
    }
    cluster_barrier();
    if (threadIdx.x < 8) floats[8 * blockIdx.x + threadIdx.x] = pairs[threadIdx.x];
    if (threadIdx.x < 4) words[4 * blockIdx.x + threadIdx.x] = numbers[threadIdx.x];
  });
  for (unsigned block = 0; block < kBlocks; ++block) {
    for (unsigned rank = 0; rank < 4; ++rank) {
      const unsigned from = block / 4 * 4 + rank, me = block % 4;
      EXPECT_EQ(floats[8 * block + 2 * rank], static_cast<float>(from));
      EXPECT_EQ(floats[8 * block + 2 * rank + 1], static_cast<float>(10 * from + me));
      EXPECT_EQ(words[4 * block + rank], 100 * from + me);
    }
  }
}

TEST(Simt, SharedMemoryStartsAsNan) {
  simt::run({{3, 1, 1}, {32, 1, 1}, 100 * sizeof(float)}, [] {
    auto* shared = reinterpret_cast<float*>(dynamic_shared_memory());
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(shared) % 1024, 0U);
    for (unsigned i = threadIdx.x; i < 100; i += 32) {
      EXPECT_TRUE(std::isnan(shared[i]));
      shared[i] = 1;
    }
  });
}

TEST(Simt, BlocksCannotRelyOnEarlierOnes) {
  std::vector<int> order(6, -1);
  int next = 0;
  simt::run({{3, 2, 1}, {1, 1, 1}}, [&] { order[blockIdx.x + 3 * blockIdx.y] = next++; });
  EXPECT_EQ(order, (std::vector<int>{5, 4, 3, 2, 1, 0}));
}

}  // namespace
}  // namespace ttt::kernels::cuda
