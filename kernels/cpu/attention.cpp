#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/blas.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/vector_math.h"

namespace ttt::kernels {
namespace {

using cpu::gemm;
using cpu::Op;

// Tile of queries and of keys: the scores of a tile (64 KiB in fp32) and its operands fit the second-level cache.
constexpr std::int64_t kTile = 128;

struct Sizes {
  std::int64_t batch, queries, keys, heads, key_heads, dim;

  [[nodiscard]] std::int64_t query_stride() const { return heads * dim; }
  [[nodiscard]] std::int64_t key_stride() const { return key_heads * dim; }
  [[nodiscard]] std::int64_t query_offset(std::int64_t b, std::int64_t h) const {
    return b * queries * query_stride() + h * dim;
  }
  [[nodiscard]] std::int64_t key_offset(std::int64_t b, std::int64_t h) const {
    return b * keys * key_stride() + h * key_heads / heads * dim;
  }
  [[nodiscard]] std::int64_t query_tiles() const { return (queries + kTile - 1) / kTile; }
};

Sizes sizes_of(const TensorView& q, const TensorView& k) {
  TTT_CHECK(q.shape().rank() == 4 && k.shape().rank() == 4,
            "q {} and k {} must be [batch, tokens, heads, dim]", q.shape().str(), k.shape().str());
  const Sizes n{q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), q.size(3)};
  expect_shape("k", k, {n.batch, n.keys, n.key_heads, n.dim});
  TTT_CHECK(n.keys >= n.queries, "{} queries against {} keys", n.queries, n.keys);
  TTT_CHECK(n.key_heads > 0 && n.heads % n.key_heads == 0, "{} key heads do not divide {} heads",
            n.key_heads, n.heads);
  return n;
}

// Running softmax of the rows of one tile of queries.
template <typename T>
struct RunningSoftmax {
  std::vector<T> largest = std::vector<T>(kTile, -std::numeric_limits<T>::infinity());
  std::vector<T> sum = std::vector<T>(kTile);

  // Turns `visible` > 0 scores of row i into exp(score - largest), the rest of the tile into zeros, and returns the
  // factor by which what was summed before shrinks.
  T add(std::int64_t i, T* scores, std::int64_t visible, std::int64_t width) {
    T maximum = scores[0];
#pragma omp simd reduction(max : maximum)
    for (std::int64_t j = 0; j < visible; ++j) maximum = std::max(maximum, scores[j]);
    maximum = std::max(maximum, largest[i]);
    T total{};
#pragma omp simd reduction(+ : total)
    for (std::int64_t j = 0; j < visible; ++j) {
      scores[j] = exponential(scores[j] - maximum);
      total += scores[j];
    }
    std::fill(scores + visible, scores + width, T{});
    const T shrink = exponential(largest[i] - maximum);
    largest[i] = maximum;
    sum[i] = sum[i] * shrink + total;
    return shrink;
  }
};

// One tile of queries of one head against all keys it sees.
template <typename T>
void forward_tile(const Sizes& n, std::int64_t first_query, const T* q, const T* k, const T* v,
                  T* out, T* lse, T scale) {
  const std::int64_t rows = std::min(kTile, n.queries - first_query);
  const std::int64_t first_position = first_query + n.keys - n.queries;
  const std::int64_t num_keys = first_position + rows;  // of the last row
  std::vector<T> scores(kTile * kTile);
  std::vector<T> sums(rows * n.dim);
  RunningSoftmax<T> softmax;
  for (std::int64_t key = 0; key < num_keys; key += kTile) {
    const std::int64_t width = std::min(kTile, num_keys - key);
    gemm(Op::kNone, Op::kTranspose, rows, width, n.dim, scale, q + first_query * n.query_stride(),
         n.query_stride(), k + key * n.key_stride(), n.key_stride(), T{0}, scores.data(), width);
    for (std::int64_t i = 0; i < rows; ++i) {
      T* row = scores.data() + i * width;
      const std::int64_t visible = std::min(width, first_position + i + 1 - key);
      if (visible <= 0) {
        std::fill(row, row + width, T{});
        continue;
      }
      const T shrink = softmax.add(i, row, visible, width);
      for (std::int64_t f = 0; f < n.dim; ++f) sums[i * n.dim + f] *= shrink;
    }
    gemm(Op::kNone, Op::kNone, rows, n.dim, width, T{1}, scores.data(), width,
         v + key * n.key_stride(), n.key_stride(), T{1}, sums.data(), n.dim);
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    T* row = out + (first_query + i) * n.query_stride();
    for (std::int64_t f = 0; f < n.dim; ++f) row[f] = sums[i * n.dim + f] / softmax.sum[i];
    if (lse != nullptr) lse[first_query + i] = softmax.largest[i] + std::log(softmax.sum[i]);
  }
}

template <typename T>
struct HeadGradient {
  const T *q, *k, *v, *d_out;
  const T* lse;    // [T]
  const T* delta;  // [T]: d_out . out
  T *d_q, *d_k, *d_v;
  std::int64_t d_key_stride;  // of d_k and d_v
};

// In place: scores to p = exp(score - lse), 0 for the keys that a row does not see.
template <typename T>
void probabilities(const T* lse, T* p, std::int64_t rows, std::int64_t width,
                   std::int64_t visible_to_first) {
  for (std::int64_t i = 0; i < rows; ++i) {
    T* row = p + i * width;
    const std::int64_t visible = std::min(width, visible_to_first + i);
    const T shift = lse[i];
    for (std::int64_t j = 0; j < visible; ++j) row[j] = exponential(row[j] - shift);
    std::fill(row + visible, row + width, T{});
  }
}

// All gradients of one head. Key tiles outside, query tiles inside: d_k and d_v of a tile are complete after its turn.
template <typename T>
void backward_head(const Sizes& n, const HeadGradient<T>& g, T scale) {
  std::vector<T> p(kTile * kTile);
  std::vector<T> d_scores(kTile * kTile);
  const std::int64_t stride = n.query_stride();
  for (std::int64_t key = 0; key < n.keys; key += kTile) {
    const std::int64_t width = std::min(kTile, n.keys - key);
    const T* k = g.k + key * n.key_stride();
    const T* v = g.v + key * n.key_stride();
    T* d_k = g.d_k + key * g.d_key_stride;
    T* d_v = g.d_v + key * g.d_key_stride;
    for (std::int64_t query = key / kTile * kTile; query < n.queries; query += kTile) {
      const std::int64_t rows = std::min(kTile, n.queries - query);
      const T* q = g.q + query * stride;
      const T* d_out = g.d_out + query * stride;
      gemm(Op::kNone, Op::kTranspose, rows, width, n.dim, scale, q, stride, k, n.key_stride(), T{0},
           p.data(), width);
      probabilities(g.lse + query, p.data(), rows, width, query - key + 1);
      gemm(Op::kNone, Op::kTranspose, rows, width, n.dim, T{1}, d_out, stride, v, n.key_stride(),
           T{0}, d_scores.data(), width);
      for (std::int64_t i = 0; i < rows; ++i) {
        const T delta = g.delta[query + i];
        for (std::int64_t j = i * width; j < (i + 1) * width; ++j) {
          d_scores[j] = p[j] * (d_scores[j] - delta);
        }
      }
      const T keep_key = query <= key ? T{0} : T{1};
      const T keep_query = key == 0 ? T{0} : T{1};
      gemm(Op::kTranspose, Op::kNone, width, n.dim, rows, T{1}, p.data(), width, d_out, stride,
           keep_key, d_v, g.d_key_stride);
      gemm(Op::kTranspose, Op::kNone, width, n.dim, rows, scale, d_scores.data(), width, q, stride,
           keep_key, d_k, g.d_key_stride);
      gemm(Op::kNone, Op::kNone, rows, n.dim, width, scale, d_scores.data(), width, k,
           n.key_stride(), keep_query, g.d_q + query * stride, stride);
    }
  }
}

// to [B, T, G, F] = sum of from [B, T, H, F] over the query heads of each group, in their order.
template <typename T>
void sum_groups(const Sizes& n, const T* from, T* to) {
  const std::int64_t group = n.heads / n.key_heads;
  cpu::for_each_block(n.batch * n.keys, [&](std::int64_t token) {
    for (std::int64_t key_head = 0; key_head < n.key_heads; ++key_head) {
      T* sum = to + (token * n.key_heads + key_head) * n.dim;
      const T* first = from + (token * n.heads + key_head * group) * n.dim;
      std::copy_n(first, n.dim, sum);
      for (std::int64_t h = 1; h < group; ++h) {
        for (std::int64_t f = 0; f < n.dim; ++f) sum[f] += first[h * n.dim + f];
      }
    }
  });
}

struct BackwardViews {
  TensorView q, k, v, out, lse, d_out, d_q, d_k, d_v;
};

template <typename T>
void run_backward(const Sizes& n, const BackwardViews& views, double scale) {
  const bool is_grouped = n.heads != n.key_heads;
  const Shape per_head{n.batch, n.keys, n.heads, n.dim};
  const Tensor head_d_k = is_grouped ? Tensor(per_head, kDType<T>) : Tensor();
  const Tensor head_d_v = is_grouped ? Tensor(per_head, kDType<T>) : Tensor();
  T* d_k = is_grouped ? head_d_k.data<T>() : views.d_k.data<T>();
  T* d_v = is_grouped ? head_d_v.data<T>() : views.d_v.data<T>();
  cpu::for_each_block(n.batch * n.heads, [&](std::int64_t i) {
    const std::int64_t queries = n.query_offset(i / n.heads, i % n.heads);
    const std::int64_t keys = n.key_offset(i / n.heads, i % n.heads);
    const T* out = views.out.data<T>() + queries;
    const T* d_out = views.d_out.data<T>() + queries;
    std::vector<T> delta(n.queries);
    for (std::int64_t t = 0; t < n.queries; ++t) {
      for (std::int64_t f = 0; f < n.dim; ++f) {
        delta[t] += d_out[t * n.query_stride() + f] * out[t * n.query_stride() + f];
      }
    }
    // With S = T, gradients by query head are laid out as the queries are.
    backward_head<T>(
        n,
        {views.q.data<T>() + queries, views.k.data<T>() + keys, views.v.data<T>() + keys, d_out,
         views.lse.data<T>() + i * n.queries, delta.data(), views.d_q.data<T>() + queries,
         d_k + queries, d_v + queries, n.query_stride()},
        static_cast<T>(scale));
  });
  if (is_grouped) {
    sum_groups(n, d_k, views.d_k.data<T>());
    sum_groups(n, d_v, views.d_v.data<T>());
  }
}

}  // namespace

void attention_forward(TensorView q, TensorView k, TensorView v, TensorView out, TensorView lse,
                       double scale, Stream& /*stream*/) {
  const Sizes n = sizes_of(q, k);
  expect_shape("v", v, k.shape());
  expect_shape("out", out, q.shape());
  if (!lse.empty()) expect_shape("lse", lse, {n.batch, n.heads, n.queries});
  visit_real(q.dtype(), [&](auto scalar) {
    using T = decltype(scalar);
    const T* q_data = q.data<T>();
    const T* k_data = k.data<T>();
    const T* v_data = v.data<T>();
    T* out_data = out.data<T>();
    T* lse_data = lse.empty() ? nullptr : lse.data<T>();
    const std::int64_t tiles = n.query_tiles();
    cpu::for_each_block(n.batch * n.heads * tiles, [&](std::int64_t i) {
      const std::int64_t tile = tiles - 1 - i / (n.batch * n.heads);  // the longest first
      const std::int64_t head = i % (n.batch * n.heads);
      const std::int64_t queries = n.query_offset(head / n.heads, head % n.heads);
      const std::int64_t keys = n.key_offset(head / n.heads, head % n.heads);
      forward_tile(n, tile * kTile, q_data + queries, k_data + keys, v_data + keys,
                   out_data + queries, lse_data == nullptr ? nullptr : lse_data + head * n.queries,
                   static_cast<T>(scale));
    });
  });
}

void attention_backward(TensorView q, TensorView k, TensorView v, TensorView out, TensorView lse,
                        TensorView d_out, TensorView d_q, TensorView d_k, TensorView d_v,
                        double scale, Stream& /*stream*/) {
  const Sizes n = sizes_of(q, k);
  TTT_CHECK(n.queries == n.keys, "backward of {} queries against {} keys", n.queries, n.keys);
  expect_shape("v", v, k.shape());
  expect_shape("out", out, q.shape());
  expect_shape("lse", lse, {n.batch, n.heads, n.queries});
  expect_shape("d_out", d_out, q.shape());
  expect_shape("d_q", d_q, q.shape());
  expect_shape("d_k", d_k, k.shape());
  expect_shape("d_v", d_v, k.shape());
  visit_real(q.dtype(), [&](auto scalar) {
    run_backward<decltype(scalar)>(n, {q, k, v, out, lse, d_out, d_q, d_k, d_v}, scale);
  });
}

}  // namespace ttt::kernels
