#pragma once
// CUDA on the CPU, for tests: compiled first into every .cu file (g++ -x c++ -include tests/support/simt/emulator.h),
// it gives the names of CUDA C++ that kernels use and all of kernels/cuda/simt.h and kernels/cuda/launch.h. Device
// memory is host memory that only kernels can reach (tests/support/simt/device_memory.h). Fragments, shuffles and
// barriers have the layouts of the PTX ISA. An asynchronous copy happens when it is waited for and its destination is
// NaN from the time it is asked for, so a missing wait is wrong data. Products and sums are fused, as nvcc does. What
// an instruction does not allow (alignment, lanes that are missing or elsewhere) ends the program.
//
// Not modelled: time, bank conflicts, registers and __launch_bounds__, the memory model beyond barriers, and static
// __shared__ variables, which start as what the block before left in them and are one for all blocks of a cluster
// (kernels with clusters use dynamic shared memory only).

#define TTT_SIMT_EMULATOR 1

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "tests/support/simt/device_memory.h"
#include "tests/support/simt/queue.h"
#include "tests/support/simt/scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))  // may stand between the words of a type
#define __shared__ static                         // one block runs at a time
#define threadIdx (ttt::simt::current().thread_index)
#define blockIdx (ttt::simt::current().block_index)
#define blockDim (ttt::simt::current_launch().block)
#define gridDim (ttt::simt::current_launch().grid)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_in = 1, unsigned y_in = 1, unsigned z_in = 1)  // NOLINT: as CUDA's
      : x(x_in), y(y_in), z(z_in) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

inline void __syncthreads(ttt::simt::Site site = ttt::simt::Site::current()) {
  ttt::simt::wait_for_block(site);
}

namespace ttt::simt {

constexpr unsigned kAllLanes = 0xffffffffU;

inline void check_mask(unsigned mask) {
  if (mask != kAllLanes) fail_kernel("the mask must name all lanes of the warp");
}

template <typename T>
T read_slot(const std::byte* slots, unsigned lane) {
  if (lane >= current().num_lanes) fail_kernel("reads from a lane that the block does not have");
  T value;
  std::memcpy(&value, slots + lane * kExchangeBytes, sizeof(T));
  return value;
}

// What shfl.sync does: source(lane, last lane of its segment) is the lane to read from, or the lane itself.
template <typename T, typename Source>
T shuffle(const char* what, unsigned mask, T value, int width, Site site, Source&& source) {
  static_assert(std::is_arithmetic_v<T>, "CUDA shuffles numbers");
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    fail_kernel("a shuffle's width is a power of two up to 32");
  }
  check_mask(mask);
  const unsigned lane = current().lane;
  const unsigned first = lane & ~static_cast<unsigned>(width - 1);
  const std::byte* slots = exchange(what, &value, sizeof(T), site);
  return read_slot<T>(slots, source(lane, first, first + static_cast<unsigned>(width) - 1));
}

}  // namespace ttt::simt

inline void __syncwarp(unsigned mask = ttt::simt::kAllLanes,
                       ttt::simt::Site site = ttt::simt::Site::current()) {
  ttt::simt::check_mask(mask);
  ttt::simt::wait_for_warp(site);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source_lane, int width = 32,
              ttt::simt::Site site = ttt::simt::Site::current()) {
  return ttt::simt::shuffle("__shfl_sync", mask, value, width, site,
                            [=](unsigned, unsigned first, unsigned last) {
                              return first + (static_cast<unsigned>(source_lane) & (last - first));
                            });
}
// Lanes of earlier segments can be read, those of later ones not.
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  ttt::simt::Site site = ttt::simt::Site::current()) {
  return ttt::simt::shuffle(
      "__shfl_xor_sync", mask, value, width, site, [=](unsigned lane, unsigned, unsigned last) {
        const unsigned other = lane ^ (static_cast<unsigned>(lane_mask) % ttt::simt::kLanes);
        return other <= last ? other : lane;
      });
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   ttt::simt::Site site = ttt::simt::Site::current()) {
  return ttt::simt::shuffle("__shfl_down_sync", mask, value, width, site,
                            [=](unsigned lane, unsigned, unsigned last) {
                              const unsigned other = lane + delta % ttt::simt::kLanes;
                              return other <= last ? other : lane;
                            });
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 ttt::simt::Site site = ttt::simt::Site::current()) {
  return ttt::simt::shuffle("__shfl_up_sync", mask, value, width, site,
                            [=](unsigned lane, unsigned first, unsigned) {
                              const unsigned by = delta % ttt::simt::kLanes;
                              return lane >= first + by ? lane - by : lane;
                            });
}

namespace ttt::kernels::cuda {

inline std::byte* dynamic_shared_memory() { return simt::current().shared; }

inline std::uint32_t pack_bf16(float low, float high) {
  return static_cast<std::uint32_t>(BFloat16(low).bits) |
         static_cast<std::uint32_t>(BFloat16(high).bits) << 16U;
}
inline float bits_to_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline std::uint32_t float_to_bits(float value) { return std::bit_cast<std::uint32_t>(value); }

inline void store_16(void* global, const uint4& words) {
  if (reinterpret_cast<std::uintptr_t>(global) % 16 != 0)
    simt::fail_kernel("store_16: address not 16-byte aligned");
  std::memcpy(global, &words, sizeof(words));
}

/// Element `which` (0 or 1) of a register of two bf16.
inline float half_of(std::uint32_t packed, unsigned which) {
  return bits_to_float(which == 0 ? packed << 16U : packed & 0xffff0000U);
}

/// Towards zero, as tensor cores round their sums.
inline float truncated(double value) {
  const auto nearest = static_cast<float>(value);
  const bool is_too_large = std::abs(static_cast<double>(nearest)) > std::abs(value);
  return is_too_large ? bits_to_float(float_to_bits(nearest) - 1) : nearest;
}

inline void check_whole_warp() {
  if (simt::current().num_lanes != simt::kLanes) simt::fail_kernel("needs a warp of 32 lanes");
}

inline void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                         std::uint32_t b1, simt::Site site = simt::Site::current()) {
  struct Registers {
    std::uint32_t a[4], b[2];
  };
  check_whole_warp();
  const Registers mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const std::byte* slots = simt::exchange("mma_m16n8k16", &mine, sizeof(mine), site);
  const unsigned row = simt::current().lane / 4;
  const unsigned column = simt::current().lane % 4 * 2;
  double sums[4] = {c[0], c[1], c[2], c[3]};
  for (unsigned pair = 0; pair < 8; ++pair) {  // columns 2 pair and 2 pair + 1 of A, rows of B
    const auto rows = simt::read_slot<Registers>(slots, row * 4 + pair % 4);
    const auto left = simt::read_slot<Registers>(slots, column * 4 + pair % 4);
    const auto right = simt::read_slot<Registers>(slots, (column + 1) * 4 + pair % 4);
    for (unsigned half = 0; half < 2; ++half) {
      const double upper = half_of(rows.a[pair / 4 * 2], half);
      const double lower = half_of(rows.a[pair / 4 * 2 + 1], half);
      const double first = half_of(left.b[pair / 4], half);
      const double second = half_of(right.b[pair / 4], half);
      sums[0] += upper * first;
      sums[1] += upper * second;
      sums[2] += lower * first;
      sums[3] += lower * second;
    }
  }
  for (int i = 0; i < 4; ++i) c[i] = truncated(sums[i]);
}

inline bool is_aligned(const void* pointer, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

inline void ldmatrix(const char* what, std::uint32_t (&r)[4], const void* row, bool transposed,
                     simt::Site site) {
  check_whole_warp();
  if (!is_aligned(row, 16)) simt::fail_kernel("ldmatrix: a row is not aligned to 16 bytes");
  const std::byte* slots = simt::exchange(what, &row, sizeof(row), site);
  const unsigned g = simt::current().lane / 4;
  const unsigned t = simt::current().lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    std::uint32_t packed = 0;
    for (unsigned j = 0; j < 2; ++j) {
      const unsigned from_row = transposed ? 2 * t + j : g;
      const unsigned from_column = transposed ? g : 2 * t + j;
      const auto* source = simt::read_slot<const std::uint16_t*>(slots, 8 * i + from_row);
      packed |= static_cast<std::uint32_t>(source[from_column]) << (16 * j);
    }
    r[i] = packed;
  }
}
inline void ldmatrix_x4(std::uint32_t (&r)[4], const void* row,
                        simt::Site site = simt::Site::current()) {
  ldmatrix("ldmatrix_x4", r, row, false, site);
}
inline void ldmatrix_x4_transposed(std::uint32_t (&r)[4], const void* row,
                                   simt::Site site = simt::Site::current()) {
  ldmatrix("ldmatrix_x4_transposed", r, row, true, site);
}
constexpr bool kHasStmatrix = true;
inline void stmatrix_x4(void* row, const std::uint32_t (&r)[4],
                        simt::Site site = simt::Site::current()) {
  struct Lane {
    void* row;
    std::uint32_t r[4];
  };
  check_whole_warp();
  if (!is_aligned(row, 16)) simt::fail_kernel("stmatrix: a row is not aligned to 16 bytes");
  const Lane mine{row, {r[0], r[1], r[2], r[3]}};
  const std::byte* slots = simt::exchange("stmatrix_x4", &mine, sizeof(mine), site);
  const unsigned lane = simt::current().lane;
  std::uint32_t words[4];  // of the row at this lane's address
  for (unsigned t = 0; t < 4; ++t) {
    words[t] = simt::read_slot<Lane>(slots, lane % 8 * 4 + t).r[lane / 8];
  }
  std::memcpy(row, words, sizeof(words));
}
inline std::uint32_t movmatrix_transposed(std::uint32_t value,
                                          simt::Site site = simt::Site::current()) {
  check_whole_warp();
  const std::byte* slots = simt::exchange("movmatrix_transposed", &value, sizeof(value), site);
  const unsigned g = simt::current().lane / 4;
  const unsigned t = simt::current().lane % 4;
  const auto element = [&](unsigned row, unsigned column) {
    const auto packed = simt::read_slot<std::uint32_t>(slots, row * 4 + column / 2);
    return column % 2 == 0 ? packed & 0xffffU : packed >> 16U;
  };
  return element(2 * t, g) | element(2 * t + 1, g) << 16U;
}

inline void copy_async(void* shared, const void* global, std::size_t bytes) {
  if (!is_aligned(shared, bytes) || !is_aligned(global, bytes)) {
    simt::fail_kernel("copy_async: an address is not aligned to the copy's size");
  }
  std::memset(shared, 0xff, bytes);
  simt::current().copies.back().push_back({shared, global, bytes});
}
inline void copy_async_16(void* shared, const void* global) { copy_async(shared, global, 16); }
inline void copy_async_4(void* shared, const void* global) { copy_async(shared, global, 4); }
alignas(16) inline constexpr std::byte kZeros[16]{};
inline void copy_async_16_or_zeros(void* shared, const void* global, bool is_there) {
  copy_async(shared, is_there ? global : kZeros, 16);
}
inline void copy_async_commit() { simt::current().copies.emplace_back(); }
template <int kPending>
void copy_async_wait() {
  auto& groups = simt::current().copies;
  while (static_cast<int>(groups.size()) - 1 > kPending) {
    for (const auto& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    groups.erase(groups.begin());
  }
}

inline void named_barrier(int id, int threads, simt::Site site = simt::Site::current()) {
  simt::wait_for_named(id, static_cast<unsigned>(threads), site);
}

inline int cluster_rank() { return simt::current().cluster_rank; }
inline void cluster_barrier(simt::Site site = simt::Site::current()) {
  simt::wait_for_cluster(site);
}
/// What `bytes` bytes at `pointer` in this block's dynamic shared memory are in that of block `rank`.
inline std::byte* in_cluster(void* pointer, int rank, std::size_t bytes) {
  const auto& blocks = *simt::current().cluster_shared;
  const auto offset = reinterpret_cast<std::uintptr_t>(pointer) -
                      reinterpret_cast<std::uintptr_t>(simt::current().shared);
  if (rank < 0 || static_cast<std::size_t>(rank) >= blocks.size()) {
    simt::fail_kernel("store_in_cluster: the cluster has no such block");
  }
  if (offset + bytes > simt::current_launch().shared_bytes || !is_aligned(pointer, bytes)) {
    simt::fail_kernel("store_in_cluster: not aligned, or not in dynamic shared memory");
  }
  std::byte* shared = blocks[static_cast<std::size_t>(rank)];
  if (shared == nullptr) simt::fail_kernel("store_in_cluster: that block has ended");
  return shared + offset;
}
inline void store_in_cluster(float* pointer, int rank, float low, float high) {
  const float2 pair{low, high};
  std::memcpy(in_cluster(pointer, rank, sizeof(pair)), &pair, sizeof(pair));
}
inline void store_in_cluster(std::uint32_t* pointer, int rank, std::uint32_t value) {
  std::memcpy(in_cluster(pointer, rank, sizeof(value)), &value, sizeof(value));
}

using Mailbox = std::uint64_t;
inline void open_mailbox(Mailbox* box) {
  simt::open_mailbox(in_cluster(box, cluster_rank(), sizeof(*box)));
}
inline void expect_bytes(Mailbox* box, int bytes) {
  simt::expect_bytes(box, static_cast<std::size_t>(bytes));
}
inline void wait_for_mail(Mailbox* box, int parity, simt::Site site = simt::Site::current()) {
  simt::wait_for_mail(box, static_cast<unsigned>(parity), site);
}
inline void send_in_cluster(float* pointer, int rank, float low, float high, Mailbox* box) {
  const float2 pair{low, high};
  simt::send(in_cluster(box, rank, sizeof(*box)), in_cluster(pointer, rank, sizeof(pair)), &pair,
             sizeof(pair));
}
inline void send_in_cluster(std::uint32_t* pointer, int rank, std::uint32_t value, Mailbox* box) {
  simt::send(in_cluster(box, rank, sizeof(*box)), in_cluster(pointer, rank, sizeof(value)), &value,
             sizeof(value));
}

inline float rsqrt_of_normal(float x) { return 1.0F / std::sqrt(x); }
inline float tanh_approximate(float x) { return std::tanh(x); }

struct LaunchShape {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;
};

inline BlockLimits block_limits() { return simt::device_limits(); }

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream& stream,
            Arguments... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "a kernel has at most 4 KiB of arguments");
  simt::submit(stream, [=] {
    const simt::DeviceAccess access;
    simt::run({{shape.grid.x, shape.grid.y, shape.grid.z},
               {shape.block.x, shape.block.y, shape.block.z},
               shape.shared_bytes,
               shape.cluster},
              [=] { kernel(static_cast<Parameters>(arguments)...); });
  });
}

}  // namespace ttt::kernels::cuda
