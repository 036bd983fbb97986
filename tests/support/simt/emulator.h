#pragma once
// CUDA on the CPU, for tests: compiled first into every .cu file (g++ -x c++ -include tests/support/simt/emulator.h),
// it gives the names of CUDA C++ that kernels use and all of kernels/cuda/simt.h and kernels/cuda/launch.h. Device
// memory is host memory. Fragments, shuffles and barriers have the layouts of the PTX ISA; asynchronous copies happen
// only when they are waited for, so a missing wait is wrong data. Not modelled: time, bank conflicts, the memory model
// beyond barriers, and `static` __shared__ variables in clusters (kernels with clusters use dynamic memory only).

#define TTT_SIMT_EMULATOR 1

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "tests/support/simt/scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) alignas(n)
#define __shared__ static  // one block runs at a time
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

inline void __syncthreads() { ttt::simt::wait_for_block(); }
inline void __syncwarp(unsigned = 0xffffffffU) { ttt::simt::wait_for_warp("__syncwarp"); }

namespace ttt::simt {

template <typename T>
T read_slot(const std::byte* slots, unsigned lane) {
  T value;
  std::memcpy(&value, slots + lane * kExchangeBytes, sizeof(T));
  return value;
}

}  // namespace ttt::simt

// Shuffles of the whole warp: the mask must name all lanes.
template <typename T>
T __shfl_xor_sync(unsigned, T value, int lane_mask, int width = 32) {
  const unsigned lane = ttt::simt::current().lane;
  const auto* slots = ttt::simt::exchange("__shfl_xor_sync", &value, sizeof(T));
  const unsigned source = lane ^ static_cast<unsigned>(lane_mask);
  const auto w = static_cast<unsigned>(width);
  return source / w == lane / w ? ttt::simt::read_slot<T>(slots, source) : value;
}
template <typename T>
T __shfl_sync(unsigned, T value, int source_lane, int width = 32) {
  const unsigned lane = ttt::simt::current().lane;
  const auto w = static_cast<unsigned>(width);
  const auto* slots = ttt::simt::exchange("__shfl_sync", &value, sizeof(T));
  return ttt::simt::read_slot<T>(slots, lane / w * w + static_cast<unsigned>(source_lane) % w);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned delta, int width = 32) {
  const unsigned lane = ttt::simt::current().lane;
  const auto w = static_cast<unsigned>(width);
  const auto* slots = ttt::simt::exchange("__shfl_down_sync", &value, sizeof(T));
  return lane % w + delta < w ? ttt::simt::read_slot<T>(slots, lane + delta) : value;
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta, int width = 32) {
  const unsigned lane = ttt::simt::current().lane;
  const auto w = static_cast<unsigned>(width);
  const auto* slots = ttt::simt::exchange("__shfl_up_sync", &value, sizeof(T));
  return lane % w >= delta ? ttt::simt::read_slot<T>(slots, lane - delta) : value;
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
  if (reinterpret_cast<std::uintptr_t>(global) % 16 != 0) simt::fail_kernel("store_16: address not 16-byte aligned");
  std::memcpy(global, &words, sizeof(words));
}

inline float half_of(std::uint32_t packed, unsigned which) {
  return bits_to_float(which == 0 ? packed << 16U : packed & 0xffff0000U);
}

inline void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                         std::uint32_t b1) {
  struct Registers {
    std::uint32_t a[4], b[2];
  };
  const Registers mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const std::byte* slots = simt::exchange("mma_m16n8k16", &mine, sizeof(mine));
  const unsigned lane = simt::current().lane;
  const unsigned row = lane / 4;
  const unsigned column = lane % 4 * 2;
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
  for (int i = 0; i < 4; ++i) c[i] = static_cast<float>(sums[i]);
}

inline void ldmatrix(std::uint32_t (&r)[4], const void* row, bool transposed) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) simt::fail_kernel("ldmatrix: row not 16-byte aligned");
  const std::byte* slots = simt::exchange("ldmatrix", &row, sizeof(row));
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
inline void ldmatrix_x4(std::uint32_t (&r)[4], const void* row) { ldmatrix(r, row, false); }
inline void ldmatrix_x4_transposed(std::uint32_t (&r)[4], const void* row) {
  ldmatrix(r, row, true);
}
inline std::uint32_t movmatrix_transposed(std::uint32_t value) {
  const std::byte* slots = simt::exchange("movmatrix", &value, sizeof(value));
  const unsigned g = simt::current().lane / 4;
  const unsigned t = simt::current().lane % 4;
  const auto element = [&](unsigned row, unsigned column) {
    const auto packed = simt::read_slot<std::uint32_t>(slots, row * 4 + column / 2);
    return column % 2 == 0 ? packed & 0xffffU : packed >> 16U;
  };
  return element(2 * t, g) | element(2 * t + 1, g) << 16U;
}

inline void copy_async(void* shared, const void* global, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(shared) % bytes != 0 ||
      reinterpret_cast<std::uintptr_t>(global) % bytes != 0) {
    simt::fail_kernel("copy_async: an address is not aligned to the copy's size");
  }
  simt::current().copies.back().push_back({shared, global, bytes});
}
inline void copy_async_16(void* shared, const void* global) { copy_async(shared, global, 16); }
inline void copy_async_4(void* shared, const void* global) { copy_async(shared, global, 4); }
inline void copy_async_commit() { simt::current().copies.emplace_back(); }
template <int kPending>
void copy_async_wait() {
  auto& groups = simt::current().copies;
  while (static_cast<int>(groups.size()) - 1 > kPending) {
    for (const auto& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    groups.erase(groups.begin());
  }
}

inline void named_barrier(int id, int threads) {
  simt::wait_for_named(id, static_cast<unsigned>(threads));
}

inline int cluster_rank() { return simt::current().cluster_rank; }
inline void cluster_barrier() { simt::wait_for_cluster(); }
template <typename T>
T* in_cluster(T* pointer, int rank) {
  const auto offset = reinterpret_cast<std::byte*>(pointer) - simt::current().shared;
  return reinterpret_cast<T*>((*simt::current().cluster_shared)[static_cast<std::size_t>(rank)] +
                              offset);
}
inline void store_in_cluster(float* pointer, int rank, float low, float high) {
  float* to = in_cluster(pointer, rank);
  to[0] = low;
  to[1] = high;
}
inline void store_in_cluster(std::uint32_t* pointer, int rank, std::uint32_t value) {
  *in_cluster(pointer, rank) = value;
}

inline float tanh_approximate(float x) { return std::tanh(x); }

struct LaunchShape {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;
};

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream& /*stream*/,
            Arguments... arguments) {
  simt::run({{shape.grid.x, shape.grid.y, shape.grid.z},
             {shape.block.x, shape.block.y, shape.block.z},
             shape.shared_bytes,
             shape.cluster},
            [=] { kernel(static_cast<Parameters>(arguments)...); });
}

}  // namespace ttt::kernels::cuda
