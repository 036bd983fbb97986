#include <algorithm>

#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/simt.h"
#include "kernels/linear_attention.h"

// A block walks the chunks of one head with the state [F, F] in shared memory; all arithmetic in fp32.

namespace ttt::kernels::cuda {
namespace {

using tiles::multiply;
using tiles::multiply_two;
using tiles::plain;
using tiles::transposed;

struct Sizes {
  std::int64_t batch, tokens, heads, dim;
  int chunk;  // tokens; a function of dim alone
  LinearAttentionOptions options;

  __host__ __device__ std::int64_t stride() const { return heads * dim; }
};

// Null: zeros, or not wanted.
struct State {
  float* kv;
  float* sum;

  explicit State(const LinearAttentionState& state)
      : kv(state.kv.empty() ? nullptr : state.kv.data<float>()),
        sum(state.k_sum.empty() ? nullptr : state.k_sum.data<float>()) {}
};

template <typename T>
struct ForwardCall {
  Sizes n;
  const T* q;
  const T* k;
  const T* v;
  T* out;
  State initial, final;  // may be the same
};

template <typename T>
struct BackwardCall {
  Sizes n;
  const T* q;
  const T* k;
  const T* v;
  const T* d_out;
  T* d_q;
  T* d_k;
  T* d_v;
  float* quotient;  // [B, H, T, 2]: see Chunk
  State initial, d_final, d_initial;
};

// Of one head.
__device__ __forceinline__ std::int64_t head_offset(const Sizes& n) {
  const std::int64_t head = blockIdx.x;
  return head / n.heads * n.tokens * n.stride() + head % n.heads * n.dim;
}

__device__ __forceinline__ float feature(FeatureMap map, float x) {
  if (map == FeatureMap::kIdentity) return x;
  return x > 0 ? x + 1.0F : expf(x);
}
// The slope of the map where it has this value.
__device__ __forceinline__ float slope_at(FeatureMap map, float phi) {
  return map == FeatureMap::kIdentity ? 1.0F : fminf(phi, 1.0F);
}

// The shared memory of a block, and the tile of tokens it works on.
struct Chunk {
  int dim, stride, pair_stride;
  int rows = 0;      // tokens of this chunk
  float *q, *k, *v;  // [chunk, F]: phi(q), phi(k), v
  float* scores;     // [chunk, chunk]: q k^T, zero above the diagonal
  float* kv;         // [F, F]: the state, or its gradient
  float* sum;        // [F]
  // Backward. With out = numerator / normalizer of each row: d_numerator = inverse d_out, and d_normalizer.
  float* d_out;       // [chunk, F]: d_numerator where `inverse` is known when it is loaded
  float* through_kv;  // [chunk, F]: d_out kv^T
  float* d_scores;    // [chunk, chunk]
  float* inverse;     // [chunk]; the normalizer's inverse is all that forward has
  float* d_normalizer;

  __device__ __forceinline__ Chunk(const Sizes& n, int num_tiles, int num_pairs)
      : dim(static_cast<int>(n.dim)),
        stride(tiles::stride_of(n.dim)),
        pair_stride(tiles::stride_of(n.chunk)) {
    tiles::Shared shared;
    q = shared.take(n.chunk * stride);
    k = shared.take(n.chunk * stride);
    v = shared.take(n.chunk * stride);
    d_out = num_tiles > 3 ? shared.take(n.chunk * stride) : nullptr;
    through_kv = num_tiles > 4 ? shared.take(n.chunk * stride) : nullptr;
    scores = shared.take(n.chunk * pair_stride);
    d_scores = num_pairs > 1 ? shared.take(n.chunk * pair_stride) : nullptr;
    kv = shared.take(dim * stride);
    sum = shared.take(dim);
    inverse = shared.take(n.chunk);
    d_normalizer = shared.take(n.chunk);
  }

  template <typename T>
  __device__ __forceinline__ void load(const Sizes& n, const T* q_rows, const T* k_rows,
                                       const T* v_rows) {
    const FeatureMap map = n.options.feature_map;
    tiles::load_rows(q_rows, n.stride(), rows, dim, q,
                     [=](int, float x) { return feature(map, x); });
    tiles::load_rows(k_rows, n.stride(), rows, dim, k,
                     [=](int, float x) { return feature(map, x); });
    tiles::load_rows(v_rows, n.stride(), rows, dim, v, [](int, float x) { return x; });
  }

  // to = a b^T + row_term on and below the diagonal, zero above.
  template <typename F>
  __device__ __forceinline__ void multiply_masked(const float* a, const float* b, float* to,
                                                  F&& row_term) const {
    multiply<4, 4>(
        rows, rows, {plain(a, stride), transposed(b, stride), dim},
        [&](int i, int j, float x) { to[i * pair_stride + j] = j <= i ? x + row_term(i) : 0.0F; });
  }

  // The warp's sum over row i of scores, times `weights` where given, and of q x: of x's row i, or with x_stride 0 of x.
  __device__ __forceinline__ float row_sum(int i, const float* weights, const float* x,
                                           int x_stride) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float total = 0;
    for (int j = lane; j <= i; j += 32) {
      const float score = scores[i * pair_stride + j];
      total += weights == nullptr ? score : score * weights[i * pair_stride + j];
    }
    for (int f = lane; f < dim; f += 32) total += q[i * stride + f] * x[i * x_stride + f];
    return tiles::warp_sum(total);
  }

  // kv += a^T b, with tokens as the depth.
  __device__ __forceinline__ void add_to_state(const float* a, const float* b) const {
    multiply<4, 4>(dim, dim, {transposed(a, stride), plain(b, stride), rows},
                   [&](int i, int j, float x) { kv[i * stride + j] += x; });
  }

  // sum += sum_i weight(i) a_i
  template <typename F>
  __device__ __forceinline__ void add_to_sum(const float* a, F&& weight) const {
    for (int f = static_cast<int>(threadIdx.x); f < dim; f += tiles::kThreads) {
      float total = 0;
      for (int i = 0; i < rows; ++i) total += weight(i) * a[i * stride + f];
      sum[f] += total;
    }
  }

  // This block's head of `from`; the padding stays zero.
  __device__ __forceinline__ void load_state(const State& from) const {
    const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * dim;
    const auto same = [](int, float x) { return x; };
    tiles::fill(kv, dim * stride, 0.0F);
    tiles::fill(sum, dim, 0.0F);
    __syncthreads();
    if (from.kv != nullptr) tiles::load_rows(from.kv + at * dim, dim, dim, dim, kv, same);
    if (from.sum != nullptr) tiles::load_rows(from.sum + at, dim, 1, dim, sum, same);
  }

  __device__ __forceinline__ void store_state(const State& to) const {
    const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * dim;
    if (to.kv != nullptr) {
      tiles::store_rows(to.kv + at * dim, dim, dim, dim,
                        [&](int i, int j) { return kv[i * stride + j]; });
    }
    if (to.sum != nullptr) {
      tiles::store_rows(to.sum + at, dim, 1, dim, [&](int, int j) { return sum[j]; });
    }
  }

  static std::int64_t shared_bytes(std::int64_t dim, std::int64_t chunk, int num_tiles,
                                   int num_pairs) {
    const std::int64_t stride = tiles::stride_of(dim);
    const std::int64_t floats = num_tiles * chunk * stride +
                                num_pairs * chunk * tiles::stride_of(chunk) + dim * stride + dim +
                                2 * chunk;
    return floats * static_cast<std::int64_t>(sizeof(float));
  }
};

struct Always {
  float value;
  __device__ __forceinline__ float operator()(int) const { return value; }
};

template <typename T>
__global__ void __launch_bounds__(tiles::kThreads) forward_kernel(ForwardCall<T> p) {
  const Sizes n = p.n;
  Chunk c(n, 3, 1);
  c.load_state(p.initial);
  for (std::int64_t begin = 0; begin < n.tokens; begin += n.chunk) {
    const std::int64_t at = head_offset(n) + begin * n.stride();
    c.rows = n.tokens - begin < n.chunk ? static_cast<int>(n.tokens - begin) : n.chunk;
    c.load(n, p.q + at, p.k + at, p.v + at);
    __syncthreads();
    c.multiply_masked(c.q, c.k, c.scores, Always{0.0F});
    __syncthreads();
    if (n.options.normalize) {
      for (int i = static_cast<int>(threadIdx.x) / 32; i < c.rows; i += tiles::kWarps) {
        const float normalizer = c.row_sum(i, nullptr, c.sum, 0);
        if (threadIdx.x % 32 == 0) c.inverse[i] = 1.0F / normalizer;
      }
      __syncthreads();
    }
    multiply_two<4, 4>(
        c.rows, c.dim, {plain(c.scores, c.pair_stride), plain(c.v, c.stride), c.rows},
        {plain(c.q, c.stride), plain(c.kv, c.stride), c.dim}, [&](int i, int j, float x) {
          const float factor = n.options.normalize ? c.inverse[i] : 1.0F;
          store_float(&p.out[at + i * n.stride() + j], x * factor);
        });
    __syncthreads();
    c.add_to_state(c.k, c.v);
    c.add_to_sum(c.k, Always{1.0F});
    __syncthreads();
  }
  c.store_state(p.final);
}

// d_scores from d_out v^T to its gradient, and what the quotient leaves of each row.
__device__ __forceinline__ void quotient_rows(const Chunk& c, bool is_normalized, float* quotient) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = static_cast<int>(threadIdx.x) / 32; i < c.rows; i += tiles::kWarps) {
    float inverse = 1.0F;
    float d_normalizer = 0.0F;
    if (is_normalized) {
      // d_out . numerator without the numerator: its two parts are products that are there already.
      inverse = 1.0F / c.row_sum(i, nullptr, c.sum, 0);
      d_normalizer = -c.row_sum(i, c.d_scores, c.through_kv, c.stride) * inverse * inverse;
    }
    for (int j = lane; j <= i; j += 32) {
      float& d_score = c.d_scores[i * c.pair_stride + j];
      d_score = d_score * inverse + d_normalizer;
    }
    if (lane == 0) {
      c.inverse[i] = quotient[2 * i] = inverse;
      c.d_normalizer[i] = quotient[2 * i + 1] = d_normalizer;
    }
  }
}

// Forward in time, with the state: d_q, and the quotient's part that the way back needs.
template <typename T>
__global__ void __launch_bounds__(tiles::kThreads) backward_queries_kernel(BackwardCall<T> p) {
  const Sizes n = p.n;
  Chunk c(n, 5, 2);
  float* const quotient = p.quotient + 2 * static_cast<std::int64_t>(blockIdx.x) * n.tokens;
  c.load_state(p.initial);
  for (std::int64_t begin = 0; begin < n.tokens; begin += n.chunk) {
    const std::int64_t at = head_offset(n) + begin * n.stride();
    c.rows = n.tokens - begin < n.chunk ? static_cast<int>(n.tokens - begin) : n.chunk;
    c.load(n, p.q + at, p.k + at, p.v + at);
    tiles::load_rows(p.d_out + at, n.stride(), c.rows, c.dim, c.d_out,
                     [](int, float x) { return x; });
    __syncthreads();
    if (n.options.normalize) c.multiply_masked(c.q, c.k, c.scores, Always{0.0F});
    c.multiply_masked(c.d_out, c.v, c.d_scores, Always{0.0F});
    multiply<4, 4>(c.rows, c.dim, {plain(c.d_out, c.stride), transposed(c.kv, c.stride), c.dim},
                   [&](int i, int j, float x) { c.through_kv[i * c.stride + j] = x; });
    __syncthreads();
    quotient_rows(c, n.options.normalize, quotient + 2 * begin);
    __syncthreads();
    multiply<4, 4>(c.rows, c.dim, {plain(c.d_scores, c.pair_stride), plain(c.k, c.stride), c.rows},
                   [&](int i, int j, float x) {
                     const float d_phi = x + c.inverse[i] * c.through_kv[i * c.stride + j] +
                                         c.d_normalizer[i] * c.sum[j];
                     const float slope = slope_at(n.options.feature_map, c.q[i * c.stride + j]);
                     store_float(&p.d_q[at + i * n.stride() + j], d_phi * slope);
                   });
    __syncthreads();
    c.add_to_state(c.k, c.v);
    c.add_to_sum(c.k, Always{1.0F});
    __syncthreads();
  }
}

// Backward in time, with the gradient of the state that leaves the chunk: d_k and d_v.
template <typename T>
__global__ void __launch_bounds__(tiles::kThreads) backward_keys_kernel(BackwardCall<T> p) {
  const Sizes n = p.n;
  Chunk c(n, 4, 2);
  const float* const quotient = p.quotient + 2 * static_cast<std::int64_t>(blockIdx.x) * n.tokens;
  c.load_state(p.d_final);
  for (std::int64_t begin = (n.tokens - 1) / n.chunk * n.chunk; begin >= 0; begin -= n.chunk) {
    const std::int64_t at = head_offset(n) + begin * n.stride();
    c.rows = n.tokens - begin < n.chunk ? static_cast<int>(n.tokens - begin) : n.chunk;
    c.load(n, p.q + at, p.k + at, p.v + at);
    const float* const row_quotient = quotient + 2 * begin;
    tiles::load_rows(p.d_out + at, n.stride(), c.rows, c.dim, c.d_out,
                     [&](int i, float x) { return x * row_quotient[2 * i]; });
    for (int i = static_cast<int>(threadIdx.x); i < c.rows; i += tiles::kThreads) {
      c.d_normalizer[i] = row_quotient[2 * i + 1];
    }
    __syncthreads();
    c.multiply_masked(c.q, c.k, c.scores, Always{0.0F});
    c.multiply_masked(c.d_out, c.v, c.d_scores, [&](int i) { return c.d_normalizer[i]; });
    __syncthreads();
    multiply_two<4, 4>(
        c.rows, c.dim, {transposed(c.scores, c.pair_stride), plain(c.d_out, c.stride), c.rows},
        {plain(c.k, c.stride), plain(c.kv, c.stride), c.dim},
        [&](int i, int j, float x) { store_float(&p.d_v[at + i * n.stride() + j], x); });
    multiply_two<4, 4>(
        c.rows, c.dim, {transposed(c.d_scores, c.pair_stride), plain(c.q, c.stride), c.rows},
        {plain(c.v, c.stride), transposed(c.kv, c.stride), c.dim}, [&](int i, int j, float x) {
          const float slope = slope_at(n.options.feature_map, c.k[i * c.stride + j]);
          store_float(&p.d_k[at + i * n.stride() + j], (x + c.sum[j]) * slope);
        });
    __syncthreads();
    c.add_to_state(c.q, c.d_out);
    c.add_to_sum(c.q, [&](int i) { return c.d_normalizer[i]; });
    __syncthreads();
  }
  c.store_state(p.d_initial);
}

// The longest chunk whose tiles fit beside the state.
Sizes sizes_of(const TensorView& q, const LinearAttentionOptions& options, int num_tiles,
               int num_pairs) {
  const std::int64_t dim = q.size(3);
  const std::int64_t available = block_limits().shared_bytes;
  for (const int chunk : {64, 32, 16}) {
    const std::int64_t limit = chunk > 16 ? tiles::for_tiles(available) : available;
    if (Chunk::shared_bytes(dim, chunk, num_tiles, num_pairs) <= limit) {
      return {q.size(0), q.size(1), q.size(2), dim, chunk, options};
    }
  }
  fail(ExitCode::kUsage,
       "linear attention with head dim {} keeps {} bytes in shared memory, {} can be had: use more "
       "heads of a smaller dim",
       dim, Chunk::shared_bytes(dim, 16, num_tiles, num_pairs), available);
}

LaunchShape shape_of(const Sizes& n, int num_tiles, int num_pairs) {
  return {dim3(static_cast<unsigned>(n.batch * n.heads)), dim3(tiles::kThreads),
          static_cast<std::size_t>(Chunk::shared_bytes(n.dim, n.chunk, num_tiles, num_pairs))};
}

}  // namespace

void linear_attention_forward(TensorView q, TensorView k, TensorView v, TensorView out,
                              const LinearAttentionState& initial,
                              const LinearAttentionState& final_state,
                              const LinearAttentionOptions& options, Stream& stream) {
  const Sizes n = sizes_of(q, options, 3, 1);
  visit_activation_type(q.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const ForwardCall<T> call{n,
                              q.data<T>(),
                              k.data<T>(),
                              v.data<T>(),
                              out.data<T>(),
                              State(initial),
                              State(final_state)};
    launch(forward_kernel<T>, shape_of(n, 3, 1), stream, call);
  });
}

void linear_attention_backward(TensorView q, TensorView k, TensorView v,
                               const LinearAttentionState& initial, TensorView d_out,
                               const LinearAttentionState& d_final, TensorView d_q, TensorView d_k,
                               TensorView d_v, const LinearAttentionState& d_initial,
                               const LinearAttentionOptions& options, Stream& stream) {
  const Sizes n = sizes_of(q, options, 5, 2);
  const Tensor quotient({n.batch, n.heads, n.tokens, 2}, DType::kF32);
  visit_activation_type(q.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const BackwardCall<T> call{n,
                               q.data<T>(),
                               k.data<T>(),
                               v.data<T>(),
                               d_out.data<T>(),
                               d_q.data<T>(),
                               d_k.data<T>(),
                               d_v.data<T>(),
                               quotient.data<float>(),
                               State(initial),
                               State(d_final),
                               State(d_initial)};
    launch(backward_queries_kernel<T>, shape_of(n, 5, 2), stream, call);
    launch(backward_keys_kernel<T>, shape_of(n, 4, 2), stream, call);
  });
}

}  // namespace ttt::kernels::cuda
