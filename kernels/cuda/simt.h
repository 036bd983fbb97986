#pragma once
// What CUDA kernels are written in, beside plain CUDA C++ (threadIdx, __syncthreads, __syncwarp, __shfl_*_sync,
// __shared__): names for the instructions that C++ has no words for. compute capability 8.0 and later.
//
// The tests compile the same kernels for the CPU with tests/support/simt/emulator.h included first, which defines all
// of this and the few CUDA names that kernels use; so kernels use nothing else of CUDA's.
//
// Fragments of mma.m16n8k16 (PTX ISA 9.7.14): lane = 4 g + t, g < 8, t < 4.
//   A [16 x 16] bf16, four registers: {A[g][2t..], A[g+8][2t..], A[g][2t+8..], A[g+8][2t+8..]}, two columns each
//   B [16 x 8]  bf16, two registers:  {B[2t..][g], B[2t+8..][g]}, two rows each
//   C [16 x 8]  fp32, four registers: {C[g][2t], C[g][2t+1], C[g+8][2t], C[g+8][2t+1]}
// So a C fragment packed to bf16 is half an A fragment, and the C fragment of X^T packed is the B fragment of X.

#include <cstdint>

#include "core/base/dtype.h"

#ifndef TTT_SIMT_EMULATOR
#include <cuda_bf16.h>

namespace ttt::kernels::cuda {

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// This block's dynamic shared memory, 1024-byte aligned.
__device__ __forceinline__ std::byte* dynamic_shared_memory() {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  return reinterpret_cast<std::byte*>(shared_bytes);
}

/// Rounds two floats to bf16, `low` in the lower half: nearest, ties to even.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ float bits_to_float(std::uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ std::uint32_t float_to_bits(float value) {
  return __float_as_uint(value);
}

/// Stores 16 bytes to global memory at once, 16-byte aligned. Compilers may take a store of uint4 apart.
__device__ __forceinline__ void store_16(void* global, const uint4& words) {
  asm volatile("st.global.v4.b32 [%0],{%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(global)),
               "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}

/// c += a b on the warp's fragments; fp32 accumulation that truncates (never accumulate long sums in it).
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4],
                                             std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Four 8x8 matrices of 16-bit elements from shared memory; lane l gives the address of row l % 8 of matrix l / 8.
/// Register i of lane 4 g + t holds row g, columns 2t and 2t+1 of matrix i.
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
/// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_transposed(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
/// The inverse of ldmatrix_x4. compute capability 9.0 and later.
constexpr bool kHasStmatrix =
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    true;
#else
    false;
#endif
__device__ __forceinline__ void stmatrix_x4(void* row, const std::uint32_t (&r)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0],{%1,%2,%3,%4};" ::"r"(shared_address(row)),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
}
/// Transposes the 8x8 matrix of 16-bit elements that the warp holds in `ldmatrix` order.
__device__ __forceinline__ std::uint32_t movmatrix_transposed(std::uint32_t value) {
  std::uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(result) : "r"(value));
  return result;
}

/// Asynchronous copies from global to shared memory, in groups that complete in order. 16 bytes, both sides aligned.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
}
__device__ __forceinline__ void copy_async_4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0],[%1],4;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
}
/// The same, or zeros where it is not there: `global` is then not read.
__device__ __forceinline__ void copy_async_16_or_zeros(void* shared, const void* global,
                                                       bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(is_there ? 16 : 0)
               : "memory");
}
/// Ends this thread's current group of copies.
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits until at most kPending of this thread's groups are under way. Other threads see the data after a barrier.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// A barrier of `threads` threads (whole warps) of the block; ids 1..15 (0 is __syncthreads).
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Thread-block clusters: compute capability 9.0 and later; elsewhere a cluster is one block.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ int cluster_rank() {
  std::uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
/// A barrier of all threads of the cluster, which also orders their accesses to shared memory.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
/// The address in block `rank` of the cluster of what `pointer` is in this block's shared memory.
__device__ __forceinline__ std::uint32_t cluster_address(const void* pointer, int rank) {
  std::uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(shared_address(pointer)), "r"(rank));
  return address;
}
__device__ __forceinline__ void store_in_cluster(float* pointer, int rank, float low, float high) {
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1,%2};" ::"r"(cluster_address(pointer, rank)),
               "f"(low), "f"(high)
               : "memory");
}
__device__ __forceinline__ void store_in_cluster(std::uint32_t* pointer, int rank,
                                                 std::uint32_t value) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(cluster_address(pointer, rank)), "r"(value)
               : "memory");
}

// Data that announces itself: it is sent to another block's shared memory and counted in by a mailbox there (an mbarrier),
// in phases of as many bytes as the receiver expects. Unlike cluster_barrier this waits for what is needed alone;
// that one is a fence over all of the device's memory, which waits for the stores to global memory and empties the L1 cache.
using Mailbox = std::uint64_t;  // in shared memory
/// By one thread, before a cluster_barrier.
__device__ __forceinline__ void open_mailbox(Mailbox* box) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(
                   shared_address(box))
               : "memory");
}
/// By one thread of the receiving block, once a phase.
__device__ __forceinline__ void expect_bytes(Mailbox* box, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(box)),
               "r"(bytes)
               : "memory");
}
/// Until the phase with this parity (the first has 0) is complete. What it brought may then be read; what else the
/// senders have done before is not ordered by it.
__device__ __forceinline__ void wait_for_mail(Mailbox* box, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nTRY:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra TRY;\n}" ::"r"(shared_address(box)),
      "r"(parity)
      : "memory");
}
/// To what is `pointer` here in block `rank`, whose mailbox is `box`.
__device__ __forceinline__ void send_in_cluster(float* pointer, int rank, float low, float high,
                                                Mailbox* box) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1,%2}, [%3];" ::"r"(
          cluster_address(pointer, rank)),
      "f"(low), "f"(high), "r"(cluster_address(box, rank))
      : "memory");
}
__device__ __forceinline__ void send_in_cluster(std::uint32_t* pointer, int rank,
                                                std::uint32_t value, Mailbox* box) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                   cluster_address(pointer, rank)),
               "r"(value), "r"(cluster_address(box, rank))
               : "memory");
}
#else
__device__ __forceinline__ int cluster_rank() { return 0; }
__device__ __forceinline__ void cluster_barrier() { __syncthreads(); }
__device__ __forceinline__ void store_in_cluster(float* pointer, int, float low, float high) {
  pointer[0] = low;
  pointer[1] = high;
}
__device__ __forceinline__ void store_in_cluster(std::uint32_t* pointer, int, std::uint32_t value) {
  *pointer = value;
}
using Mailbox = std::uint64_t;
__device__ __forceinline__ void open_mailbox(Mailbox*) {}
__device__ __forceinline__ void expect_bytes(Mailbox*, int) {}
__device__ __forceinline__ void wait_for_mail(Mailbox*, int) { __syncthreads(); }
__device__ __forceinline__ void send_in_cluster(float* pointer, int rank, float low, float high,
                                                Mailbox*) {
  store_in_cluster(pointer, rank, low, high);
}
__device__ __forceinline__ void send_in_cluster(std::uint32_t* pointer, int rank,
                                                std::uint32_t value, Mailbox*) {
  store_in_cluster(pointer, rank, value);
}
#endif

/// 1 / sqrt(x) of a normal x > 0, as rsqrtf but without its care for denormal numbers.
__device__ __forceinline__ float rsqrt_of_normal(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}

/// 2^-11 relative error: below the rounding of bf16. The emulator's is exact.
__device__ __forceinline__ float tanh_approximate(float x) {
  float y;
  asm("tanh.approx.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace ttt::kernels::cuda
#endif

namespace ttt::kernels::cuda {

/// `value`, which the compiler then takes for unknown: what is computed from it is computed after this, not
/// before and kept, as loop invariants are, where it would take up registers; and it is rounded: no product is fused with
/// the sum that follows.
__device__ __forceinline__ int opaque(int value) {
#ifndef TTT_SIMT_EMULATOR
  asm volatile("" : "+r"(value));
#endif
  return value;
}

__device__ __forceinline__ float opaque(float value) {
#ifndef TTT_SIMT_EMULATOR
  asm volatile("" : "+f"(value));
#else
  asm volatile("" : "+m"(value));
#endif
  return value;
}

/// The halves of a packed pair of bf16.
__device__ __forceinline__ float low_bf16(std::uint32_t packed) {
  return bits_to_float(packed << 16U);
}
__device__ __forceinline__ float high_bf16(std::uint32_t packed) {
  return bits_to_float(packed & 0xffff0000U);
}

/// An activation's element as the float that arithmetic sees, and back (bf16: nearest, ties to even).
__device__ __forceinline__ float load_float(float value) { return value; }
__device__ __forceinline__ float load_float(BFloat16 value) {
  return bits_to_float(static_cast<std::uint32_t>(value.bits) << 16U);
}
__device__ __forceinline__ void store_float(float* to, float value) { *to = value; }
__device__ __forceinline__ void store_float(BFloat16* to, float value) {
  to->bits = static_cast<std::uint16_t>(pack_bf16(value, 0.0F) & 0xffffU);
}

/// The byte offset of 16-byte chunk `chunk` (0..7) of row `row` in a tile of rows of 128 bytes: ldmatrix and rows of
/// stores meet no bank conflict. The pattern is that of the tensor memory accelerator's 128-byte swizzle.
__device__ __forceinline__ int swizzled(int row, int chunk) {
  return row * 128 + ((chunk ^ (row & 7)) << 4);
}

}  // namespace ttt::kernels::cuda
