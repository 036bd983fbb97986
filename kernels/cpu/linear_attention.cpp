#include "kernels/linear_attention.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/blas.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

using cpu::gemm;
using cpu::Op;

// Tokens of a chunk: pairs inside a chunk cost as much as the state does at the usual head sizes.
constexpr std::int64_t kChunk = 64;

struct Sizes {
  std::int64_t batch, tokens, heads, dim;

  [[nodiscard]] std::int64_t stride() const { return heads * dim; }
  [[nodiscard]] std::int64_t offset(std::int64_t head) const {
    return head / heads * tokens * stride() + head % heads * dim;
  }
};

Sizes sizes_of(const TensorView& q) {
  TTT_CHECK(q.shape().rank() == 4, "q {} must be [batch, tokens, heads, dim]", q.shape().str());
  return {q.size(0), q.size(1), q.size(2), q.size(3)};
}

// to [rows, dim], dense = phi(from), strided.
template <typename T>
void map_features(FeatureMap map, const T* from, std::int64_t stride, T* to, std::int64_t rows,
                  std::int64_t dim) {
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* x = from + i * stride;
    T* y = to + i * dim;
    if (map == FeatureMap::kIdentity) {
      std::copy_n(x, dim, y);
    } else {
      for (std::int64_t f = 0; f < dim; ++f) y[f] = x[f] > 0 ? x[f] + T{1} : exponential(x[f]);
    }
  }
}

// d_x = d_phi phi'(x); d_phi is dense.
template <typename T>
void unmap_features(FeatureMap map, const T* x, const T* d_phi, T* d_x, std::int64_t stride,
                    std::int64_t rows, std::int64_t dim) {
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t f = 0; f < dim; ++f) {
      const T value = x[i * stride + f];
      const T slope = map == FeatureMap::kIdentity || value > 0 ? T{1} : exponential(value);
      d_x[i * stride + f] = d_phi[i * dim + f] * slope;
    }
  }
}

// One head's walk over the chunks: features of the chunk, its scores, and the state that enters it.
template <typename T>
struct Walk {
  const Sizes& n;
  const LinearAttentionOptions& options;
  std::vector<T> q, k;       // phi, [rows, F]
  std::vector<T> scores;     // [rows, rows], zero above the diagonal
  std::vector<T> kv, k_sum;  // [F, F], [F]

  Walk(const Sizes& sizes, const LinearAttentionOptions& opts)
      : n(sizes),
        options(opts),
        q(kChunk * sizes.dim),
        k(kChunk * sizes.dim),
        scores(kChunk * kChunk),
        kv(sizes.dim * sizes.dim),
        k_sum(sizes.dim) {}

  void load(const T* q_rows, const T* k_rows, std::int64_t rows) {
    map_features(options.feature_map, q_rows, n.stride(), q.data(), rows, n.dim);
    map_features(options.feature_map, k_rows, n.stride(), k.data(), rows, n.dim);
    multiply_masked(q.data(), n.dim, k.data(), n.dim, rows, scores);
  }

  // to = a b^T below and on the diagonal, zero above.
  void multiply_masked(const T* a, std::int64_t ld_a, const T* b, std::int64_t ld_b,
                       std::int64_t rows, std::vector<T>& to) const {
    gemm(Op::kNone, Op::kTranspose, rows, rows, n.dim, T{1}, a, ld_a, b, ld_b, T{0}, to.data(),
         rows);
    for (std::int64_t i = 0; i < rows; ++i) {
      std::fill(to.data() + i * rows + i + 1, to.data() + (i + 1) * rows, T{});
    }
  }

  // numerator [rows, F] of stride `ld`.
  void numerator(const T* v, T* to, std::int64_t ld, std::int64_t rows) const {
    gemm(Op::kNone, Op::kNone, rows, n.dim, rows, T{1}, scores.data(), rows, v, n.stride(), T{0},
         to, ld);
    gemm(Op::kNone, Op::kNone, rows, n.dim, n.dim, T{1}, q.data(), n.dim, kv.data(), n.dim, T{1},
         to, ld);
  }

  // sum_{s<=t} phi(q_t) . phi(k_s) of row i.
  [[nodiscard]] T normalizer(std::int64_t i, std::int64_t rows) const {
    T sum{};
    for (std::int64_t j = 0; j <= i; ++j) sum += scores[i * rows + j];
    for (std::int64_t f = 0; f < n.dim; ++f) sum += q[i * n.dim + f] * k_sum[f];
    return sum;
  }

  void advance(const T* v, std::int64_t rows) {
    gemm(Op::kTranspose, Op::kNone, n.dim, n.dim, rows, T{1}, k.data(), n.dim, v, n.stride(), T{1},
         kv.data(), n.dim);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t f = 0; f < n.dim; ++f) k_sum[f] += k[i * n.dim + f];
    }
  }
};

// Of one head; null means zeros (in) or not wanted (out).
template <typename T>
struct StateOfHead {
  T* kv = nullptr;
  T* k_sum = nullptr;

  StateOfHead(const LinearAttentionState& state, std::int64_t head, std::int64_t dim) {
    if (!state.kv.empty()) kv = state.kv.data<T>() + head * dim * dim;
    if (!state.k_sum.empty()) k_sum = state.k_sum.data<T>() + head * dim;
  }
  void load(std::vector<T>& to_kv, std::vector<T>& to_sum) const {
    if (kv != nullptr) std::copy_n(kv, to_kv.size(), to_kv.data());
    if (k_sum != nullptr) std::copy_n(k_sum, to_sum.size(), to_sum.data());
  }
  void store(const std::vector<T>& from_kv, const std::vector<T>& from_sum) const {
    if (kv != nullptr) std::ranges::copy(from_kv, kv);
    if (k_sum != nullptr) std::ranges::copy(from_sum, k_sum);
  }
};

template <typename T>
void forward_head(const Sizes& n, const LinearAttentionOptions& options, const T* q, const T* k,
                  const T* v, T* out, Walk<T>& walk) {
  for (std::int64_t begin = 0; begin < n.tokens; begin += kChunk) {
    const std::int64_t rows = std::min(kChunk, n.tokens - begin);
    const std::int64_t at = begin * n.stride();
    walk.load(q + at, k + at, rows);
    walk.numerator(v + at, out + at, n.stride(), rows);
    for (std::int64_t i = 0; i < rows && options.normalize; ++i) {
      const T normalizer = walk.normalizer(i, rows);
      T* row = out + at + i * n.stride();
      for (std::int64_t f = 0; f < n.dim; ++f) row[f] /= normalizer;
    }
    walk.advance(v + at, rows);
  }
}

template <typename T>
struct HeadGradient {
  const T *q, *k, *v, *d_out;
  T *d_q, *d_k, *d_v;
  StateOfHead<T> initial, d_final, d_initial;
};

// What the gradient of the quotient leaves of one head: d_out of row t goes to the numerator times inverse[t], and
// d_normalizer[t] to the normaliser. Without normaliser 1 and 0.
template <typename T>
struct QuotientGradient {
  std::vector<T> inverse, d_normalizer;

  explicit QuotientGradient(std::int64_t tokens) : inverse(tokens, T{1}), d_normalizer(tokens) {}

  // [rows, F], dense
  void d_numerator(const T* d_out, std::int64_t stride, std::int64_t begin, std::int64_t rows,
                   std::int64_t dim, T* to) const {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t f = 0; f < dim; ++f) {
        to[i * dim + f] = d_out[i * stride + f] * inverse[begin + i];
      }
    }
  }
};

// d_scores [rows, rows] of a chunk.
template <typename T>
void chunk_d_scores(const Walk<T>& walk, const std::vector<T>& d_numerator, const T* v,
                    const T* d_normalizer, std::int64_t rows, std::vector<T>& d_scores) {
  walk.multiply_masked(d_numerator.data(), walk.n.dim, v, walk.n.stride(), rows, d_scores);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) d_scores[i * rows + j] += d_normalizer[i];
  }
}

// Forward in time, with the state: d_q, and the quotient's part that the way back needs.
template <typename T>
void backward_queries(const Sizes& n, const LinearAttentionOptions& options,
                      const HeadGradient<T>& g, QuotientGradient<T>& quotient) {
  Walk<T> walk(n, options);
  g.initial.load(walk.kv, walk.k_sum);
  std::vector<T> numerator(kChunk * n.dim);
  std::vector<T> d_numerator(kChunk * n.dim);
  std::vector<T> d_phi(kChunk * n.dim);
  std::vector<T> d_scores(kChunk * kChunk);
  for (std::int64_t begin = 0; begin < n.tokens; begin += kChunk) {
    const std::int64_t rows = std::min(kChunk, n.tokens - begin);
    const std::int64_t at = begin * n.stride();
    walk.load(g.q + at, g.k + at, rows);
    if (options.normalize) {
      walk.numerator(g.v + at, numerator.data(), n.dim, rows);
      for (std::int64_t i = 0; i < rows; ++i) {
        const T inverse = T{1} / walk.normalizer(i, rows);
        T dot{};
        for (std::int64_t f = 0; f < n.dim; ++f) {
          dot += g.d_out[at + i * n.stride() + f] * numerator[i * n.dim + f];
        }
        quotient.inverse[begin + i] = inverse;
        quotient.d_normalizer[begin + i] = -dot * inverse * inverse;
      }
    }
    const T* d_normalizer = quotient.d_normalizer.data() + begin;
    quotient.d_numerator(g.d_out + at, n.stride(), begin, rows, n.dim, d_numerator.data());
    chunk_d_scores(walk, d_numerator, g.v + at, d_normalizer, rows, d_scores);
    gemm(Op::kNone, Op::kNone, rows, n.dim, rows, T{1}, d_scores.data(), rows, walk.k.data(), n.dim,
         T{0}, d_phi.data(), n.dim);
    gemm(Op::kNone, Op::kTranspose, rows, n.dim, n.dim, T{1}, d_numerator.data(), n.dim,
         walk.kv.data(), n.dim, T{1}, d_phi.data(), n.dim);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t f = 0; f < n.dim; ++f) {
        d_phi[i * n.dim + f] += d_normalizer[i] * walk.k_sum[f];
      }
    }
    unmap_features(options.feature_map, g.q + at, d_phi.data(), g.d_q + at, n.stride(), rows,
                   n.dim);
    walk.advance(g.v + at, rows);
  }
}

// Backward in time, with the gradient of the state that leaves the chunk: d_k and d_v.
template <typename T>
void backward_keys(const Sizes& n, const LinearAttentionOptions& options, const HeadGradient<T>& g,
                   const QuotientGradient<T>& quotient) {
  Walk<T> walk(n, options);
  std::vector<T> d_numerator(kChunk * n.dim);
  std::vector<T> d_phi(kChunk * n.dim);
  std::vector<T> d_scores(kChunk * kChunk);
  std::vector<T> d_kv(n.dim * n.dim);
  std::vector<T> d_k_sum(n.dim);
  g.d_final.load(d_kv, d_k_sum);
  for (std::int64_t begin = (n.tokens + kChunk - 1) / kChunk * kChunk - kChunk; begin >= 0;
       begin -= kChunk) {
    const std::int64_t rows = std::min(kChunk, n.tokens - begin);
    const std::int64_t at = begin * n.stride();
    const T* d_normalizer = quotient.d_normalizer.data() + begin;
    walk.load(g.q + at, g.k + at, rows);
    quotient.d_numerator(g.d_out + at, n.stride(), begin, rows, n.dim, d_numerator.data());
    chunk_d_scores(walk, d_numerator, g.v + at, d_normalizer, rows, d_scores);
    gemm(Op::kTranspose, Op::kNone, rows, n.dim, rows, T{1}, walk.scores.data(), rows,
         d_numerator.data(), n.dim, T{0}, g.d_v + at, n.stride());
    gemm(Op::kNone, Op::kNone, rows, n.dim, n.dim, T{1}, walk.k.data(), n.dim, d_kv.data(), n.dim,
         T{1}, g.d_v + at, n.stride());
    gemm(Op::kTranspose, Op::kNone, rows, n.dim, rows, T{1}, d_scores.data(), rows, walk.q.data(),
         n.dim, T{0}, d_phi.data(), n.dim);
    gemm(Op::kNone, Op::kTranspose, rows, n.dim, n.dim, T{1}, g.v + at, n.stride(), d_kv.data(),
         n.dim, T{1}, d_phi.data(), n.dim);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t f = 0; f < n.dim; ++f) d_phi[i * n.dim + f] += d_k_sum[f];
    }
    unmap_features(options.feature_map, g.k + at, d_phi.data(), g.d_k + at, n.stride(), rows,
                   n.dim);
    gemm(Op::kTranspose, Op::kNone, n.dim, n.dim, rows, T{1}, walk.q.data(), n.dim,
         d_numerator.data(), n.dim, T{1}, d_kv.data(), n.dim);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t f = 0; f < n.dim; ++f)
        d_k_sum[f] += d_normalizer[i] * walk.q[i * n.dim + f];
    }
  }
  g.d_initial.store(d_kv, d_k_sum);
}

void check_state(const char* kv_name, const char* sum_name, const LinearAttentionState& state,
                 const Sizes& n) {
  if (!state.kv.empty()) expect_shape(kv_name, state.kv, {n.batch, n.heads, n.dim, n.dim});
  if (!state.k_sum.empty()) expect_shape(sum_name, state.k_sum, {n.batch, n.heads, n.dim});
}

}  // namespace

void linear_attention_forward(TensorView q, TensorView k, TensorView v, TensorView out,
                              const LinearAttentionState& initial,
                              const LinearAttentionState& final_state,
                              const LinearAttentionOptions& options, Stream& stream) {
  const Sizes n = sizes_of(q);
  expect_shape("k", k, q.shape());
  expect_shape("v", v, q.shape());
  expect_shape("out", out, q.shape());
  check_state("initial.kv", "initial.k_sum", initial, n);
  check_state("final_state.kv", "final_state.k_sum", final_state, n);
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->linear_attention_forward(q, k, v, out, initial, final_state, options, stream);
  }
  visit_real(q.dtype(), [&](auto scalar) {
    using T = decltype(scalar);
    cpu::for_each_block(n.batch * n.heads, [&](std::int64_t i) {
      Walk<T> walk(n, options);
      StateOfHead<T>(initial, i, n.dim).load(walk.kv, walk.k_sum);
      const std::int64_t head = n.offset(i);
      forward_head<T>(n, options, q.data<T>() + head, k.data<T>() + head, v.data<T>() + head,
                      out.data<T>() + head, walk);
      StateOfHead<T>(final_state, i, n.dim).store(walk.kv, walk.k_sum);
    });
  });
}

void linear_attention_backward(TensorView q, TensorView k, TensorView v,
                               const LinearAttentionState& initial, TensorView d_out,
                               const LinearAttentionState& d_final, TensorView d_q, TensorView d_k,
                               TensorView d_v, const LinearAttentionState& d_initial,
                               const LinearAttentionOptions& options, Stream& stream) {
  const Sizes n = sizes_of(q);
  expect_shape("k", k, q.shape());
  expect_shape("v", v, q.shape());
  expect_shape("d_out", d_out, q.shape());
  expect_shape("d_q", d_q, q.shape());
  expect_shape("d_k", d_k, q.shape());
  expect_shape("d_v", d_v, q.shape());
  check_state("initial.kv", "initial.k_sum", initial, n);
  check_state("d_final.kv", "d_final.k_sum", d_final, n);
  check_state("d_initial.kv", "d_initial.k_sum", d_initial, n);
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->linear_attention_backward(q, k, v, initial, d_out, d_final, d_q, d_k, d_v,
                                          d_initial, options, stream);
  }
  visit_real(q.dtype(), [&](auto scalar) {
    using T = decltype(scalar);
    cpu::for_each_block(n.batch * n.heads, [&](std::int64_t i) {
      const std::int64_t head = n.offset(i);
      const HeadGradient<T> g{q.data<T>() + head,     k.data<T>() + head,   v.data<T>() + head,
                              d_out.data<T>() + head, d_q.data<T>() + head, d_k.data<T>() + head,
                              d_v.data<T>() + head,   {initial, i, n.dim},  {d_final, i, n.dim},
                              {d_initial, i, n.dim}};
      QuotientGradient<T> quotient(n.tokens);
      backward_queries(n, options, g, quotient);
      backward_keys(n, options, g, quotient);
    });
  });
}

}  // namespace ttt::kernels
