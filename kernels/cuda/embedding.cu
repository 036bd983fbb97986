#include <algorithm>
#include <initializer_list>
#include <limits>

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/simt.h"
#include "kernels/embedding.h"

namespace ttt::kernels::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffU;
constexpr int kThreads = 256;
constexpr int kScanThreads = 1024;

// Elements that move together, in one access when there are 16 bytes of them.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Packet {
  T values[kWidth];
};

bool are_aligned(std::initializer_list<const void*> pointers) {
  return std::ranges::all_of(pointers, [](const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
  });
}

// A warp a token. Nothing of the table is read for an id outside it.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const std::int64_t* __restrict__ ids, const float* __restrict__ table,
                   T* __restrict__ y, std::int64_t tokens, std::int64_t vocabulary,
                   std::int64_t channels) {
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (n >= tokens) return;
  const std::int64_t id = ids[n];
  const bool is_word = id >= 0 && id < vocabulary;
  const float* const from = table + (is_word ? id * channels : 0);
  T* const to = y + n * channels;
#pragma unroll 4
  for (std::int64_t c = threadIdx.x % 32 * kWidth; c < channels; c += 32 * kWidth) {
    Packet<float, kWidth> in;
    for (float& value : in.values) value = std::numeric_limits<float>::quiet_NaN();
    if (is_word) in = *reinterpret_cast<const Packet<float, kWidth>*>(from + c);
    Packet<T, kWidth> out;
    for (int i = 0; i < kWidth; ++i) store_float(&out.values[i], in.values[i]);
    *reinterpret_cast<Packet<T, kWidth>*>(to + c) = out;
  }
}

// The backward pass is a stable counting sort of the tokens by id, then one block an id that adds rows in token order.
// Each of at most 64 chunks of tokens is walked in order by one warp, so that places need no atomics.

__global__ void zero_kernel(int* values, std::int64_t count) {
  for_each_element(count, [&](std::int64_t i) { values[i] = 0; });
}

// counters [chunks, V]: how many tokens of an id came before: in the chunk when counting, in all when placing.
template <bool kPlaces>
__global__ void __launch_bounds__(32)
    walk_kernel(const std::int64_t* ids, int* counters, const int* starts, int* order,
                std::int64_t tokens, std::int64_t vocabulary, std::int64_t chunk_tokens) {
  const int lane = static_cast<int>(threadIdx.x);
  const std::int64_t begin = blockIdx.x * chunk_tokens;
  const std::int64_t end = std::min(tokens, begin + chunk_tokens);
  int* const counter = counters + blockIdx.x * vocabulary;
  for (std::int64_t tile = begin; tile < end; tile += 32) {
    const std::int64_t n = tile + lane;
    const std::int64_t id = n < end ? ids[n] : -1;
    const bool is_word = id >= 0 && id < vocabulary;
    const int key = is_word ? static_cast<int>(id) : -1 - lane;  // equal to nobody's
    int before = 0;
    int after = 0;
    for (int mask = 1; mask < 32; ++mask) {
      const bool is_same = __shfl_xor_sync(kAllLanes, key, mask) == key;
      before += is_same && (lane ^ mask) < lane ? 1 : 0;
      after += is_same && (lane ^ mask) > lane ? 1 : 0;
    }
    const int place = is_word ? counter[key] + before : 0;
    __syncwarp();  // all lanes have read before one of them writes
    if (is_word) {
      if constexpr (kPlaces) order[starts[key] + place] = static_cast<int>(n);
      if (after == 0) counter[key] = place + 1;
    }
    __syncwarp();  // and the next tile reads what was written
  }
}

// Counts of the chunks become what comes before each chunk; their sums are `totals`.
__global__ void chunk_sums_kernel(int* counters, int* totals, std::int64_t chunks,
                                  std::int64_t vocabulary) {
  for_each_element(vocabulary, [&](std::int64_t id) {
    int sum = 0;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      int& counter = counters[chunk * vocabulary + id];
      const int count = counter;
      counter = sum;
      sum += count;
    }
    totals[id] = sum;
  });
}

__device__ __forceinline__ int inclusive_warp_sum(int value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int left = __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(distance));
    if (lane >= distance) value += left;
  }
  return value;
}

// In place: totals [V] become the sums before them, and element V the sum of all. One block; a thread sums a piece.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(int* totals, std::int64_t vocabulary) {
  __shared__ int warp_sums[kScanThreads / 32];
  const std::int64_t piece = (vocabulary + kScanThreads - 1) / kScanThreads;
  const std::int64_t begin = std::min<std::int64_t>(vocabulary, threadIdx.x * piece);
  const std::int64_t end = std::min(vocabulary, begin + piece);
  int sum = 0;
  for (std::int64_t id = begin; id < end; ++id) sum += totals[id];
  const int in_warp = inclusive_warp_sum(sum);
  const unsigned warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 31) warp_sums[warp] = in_warp;
  __syncthreads();
  const int all = inclusive_warp_sum(warp_sums[threadIdx.x % 32]);  // of the warps up to this lane
  const int before_warp = __shfl_sync(kAllLanes, all, warp == 0 ? 0 : static_cast<int>(warp) - 1);
  int before = in_warp - sum + (warp == 0 ? 0 : before_warp);
  for (std::int64_t id = begin; id < end; ++id) {
    const int count = totals[id];
    totals[id] = before;
    before += count;
  }
  if (threadIdx.x == kScanThreads - 1) totals[vocabulary] = before;
}

// A block an id: tokens order[starts[id]...], ascending, are added to its row.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    accumulate_kernel(const int* __restrict__ starts, const int* __restrict__ order,
                      const T* __restrict__ d_y, float* __restrict__ d_table,
                      std::int64_t channels) {
  constexpr int kRowWidth = std::min(kWidth, 4);
  using RowPacket = Packet<float, kRowWidth>;
  const std::int64_t id = blockIdx.x;
  const int begin = starts[id];
  const int end = starts[id + 1];
  if (begin == end) return;
  for (std::int64_t c = threadIdx.x * kWidth; c < channels;
       c += static_cast<std::int64_t>(blockDim.x) * kWidth) {
    auto* const row = reinterpret_cast<RowPacket*>(d_table + id * channels + c);
    RowPacket sums[kWidth / kRowWidth];
    for (int i = 0; i < kWidth / kRowWidth; ++i) sums[i] = row[i];
#pragma unroll 8
    for (int place = begin; place < end; ++place) {
      const auto in =
          *reinterpret_cast<const Packet<T, kWidth>*>(d_y + order[place] * channels + c);
      for (int i = 0; i < kWidth; ++i) {
        sums[i / kRowWidth].values[i % kRowWidth] += load_float(in.values[i]);
      }
    }
    for (int i = 0; i < kWidth / kRowWidth; ++i) row[i] = sums[i];
  }
}

// Tokens [N] by id, those of one id in order; id's begin at starts[id]. Ids outside the vocabulary are left out.
struct Lists {
  Tensor order;   // [N] I32
  Tensor starts;  // [V + 1] I32
};

Lists lists_by_id(TensorView ids, std::int64_t vocabulary, Stream& stream) {
  constexpr std::int64_t kMinChunk = 512;
  constexpr std::int64_t kMaxChunks = 64;
  const std::int64_t tokens = ids.size(0);
  const std::int64_t chunk_tokens = std::max(kMinChunk, (tokens + kMaxChunks - 1) / kMaxChunks);
  const std::int64_t chunks = (tokens + chunk_tokens - 1) / chunk_tokens;
  const Tensor counters({chunks, vocabulary}, DType::kI32);
  const Lists lists{Tensor({tokens}, DType::kI32), Tensor({vocabulary + 1}, DType::kI32)};
  const auto* const id = ids.data<std::int64_t>();
  auto* const counter = counters.data<std::int32_t>();
  auto* const starts = lists.starts.data<std::int32_t>();
  auto* const order = lists.order.data<std::int32_t>();
  const LaunchShape warps{dim3(static_cast<unsigned>(chunks)), dim3(32)};
  launch(zero_kernel, elementwise_shape(counters.numel()), stream, counter, counters.numel());
  launch(walk_kernel<false>, warps, stream, id, counter, starts, order, tokens, vocabulary,
         chunk_tokens);
  launch(chunk_sums_kernel, elementwise_shape(vocabulary), stream, counter, starts, chunks,
         vocabulary);
  launch(scan_kernel, {dim3(1), dim3(kScanThreads)}, stream, starts, vocabulary);
  launch(walk_kernel<true>, warps, stream, id, counter, starts, order, tokens, vocabulary,
         chunk_tokens);
  return lists;
}

template <typename T, int kWidth>
void accumulate(const Lists& lists, TensorView d_y, TensorView d_table, Stream& stream) {
  const std::int64_t channels = d_table.size(1);
  const std::int64_t packets = (channels + kWidth - 1) / kWidth;
  const std::int64_t threads = std::min<std::int64_t>((packets + 31) / 32 * 32, kThreads);
  launch(accumulate_kernel<T, kWidth>,
         {dim3(static_cast<unsigned>(d_table.size(0))), dim3(static_cast<unsigned>(threads))},
         stream, lists.starts.data<std::int32_t>(), lists.order.data<std::int32_t>(), d_y.data<T>(),
         d_table.data<float>(), channels);
}

}  // namespace

void embedding_forward(TensorView ids, TensorView table, TensorView y, Stream& stream) {
  constexpr std::int64_t kTokensPerBlock = kThreads / 32;
  const std::int64_t tokens = ids.size(0);
  const std::int64_t channels = table.size(1);
  const LaunchShape shape{
      dim3(static_cast<unsigned>((tokens + kTokensPerBlock - 1) / kTokensPerBlock)),
      dim3(kThreads)};
  const bool has_packets = channels % 4 == 0 && are_aligned({table.raw(), y.raw()});
  visit_activation_type(y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    launch(has_packets ? forward_kernel<T, 4> : forward_kernel<T, 1>, shape, stream,
           ids.data<std::int64_t>(), table.data<float>(), y.data<T>(), tokens, table.size(0),
           channels);
  });
}

void embedding_backward(TensorView ids, TensorView d_y, TensorView d_table, Stream& stream) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  const std::int64_t channels = d_table.size(1);
  TTT_CHECK(ids.size(0) < kMost && d_table.size(0) < kMost, "{} tokens of {} words: 2^31 at most",
            ids.size(0), d_table.size(0));
  if (d_y.numel() == 0) return;
  const Lists lists = lists_by_id(ids, d_table.size(0), stream);
  visit_activation_type(d_y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = 16 / sizeof(T);
    const bool has_packets = channels % kWidth == 0 && are_aligned({d_y.raw(), d_table.raw()});
    if (has_packets) {
      accumulate<T, kWidth>(lists, d_y, d_table, stream);
    } else {
      accumulate<T, 1>(lists, d_y, d_table, stream);
    }
  });
}

}  // namespace ttt::kernels::cuda
