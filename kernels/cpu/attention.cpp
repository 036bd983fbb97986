#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/blas.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/ttt_matrix.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

using simd::kLanes;
using simd::Vec;
using ttt_cpu::Left;
using ttt_cpu::Rows;

// A tile of keys is packed once for all queries of a tile; the scores of a tile stay in the first-level cache.
constexpr std::int64_t kQueryTile = 256;
constexpr std::int64_t kKeyTile = 128;

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
  [[nodiscard]] std::int64_t query_tiles() const { return (queries + kQueryTile - 1) / kQueryTile; }
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

// Rows of padded columns with their memory.
template <typename T>
class Scratch {
 public:
  Scratch(std::int64_t count, std::int64_t columns)
      : tensor_({count, simd::padded<T>(columns)}, kDType<T>),
        rows_{tensor_.data<T>(), simd::padded<T>(columns)} {}

  [[nodiscard]] const Rows<T>& rows() const { return rows_; }
  void clear() const { fill(tensor_, 0); }

 private:
  Tensor tensor_;
  Rows<T> rows_;
};

// to = factor * from, its padding zero.
template <typename T>
void pack(const T* from, std::int64_t stride, std::int64_t count, std::int64_t dim, T factor,
          Rows<T> to) {
  for (std::int64_t i = 0; i < count; ++i) {
    T* row = to.row(i);
    for (std::int64_t f = 0; f < dim; ++f) row[f] = factor * from[i * stride + f];
    std::fill(row + dim, row + to.stride, T{});
  }
}

template <typename T>
void unpack(Rows<T> from, std::int64_t count, std::int64_t dim, T factor, T* to,
            std::int64_t stride) {
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t f = 0; f < dim; ++f) to[i * stride + f] = factor * from.row(i)[f];
  }
}

// The first `visible` lanes of x, elsewhere `other`.
template <typename T>
[[gnu::always_inline]] inline Vec<T> mask(Vec<T> x, std::int64_t visible, T other) {
  simd::Lanes<T> lane{};
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
  using Index = std::remove_reference_t<decltype(lane[0])>;
  const auto limit =
      static_cast<Index>(std::clamp<std::int64_t>(visible, 0, std::int64_t{kLanes<T>}));
  return lane < limit ? x : simd::splat(other);
}

template <typename T>
[[gnu::always_inline]] inline T largest_lane(Vec<T> x) {
#pragma GCC unroll 4
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    simd::Lanes<T> partner{};
    for (int i = 0; i < kLanes<T>; ++i) partner[i] = i ^ width;
    const Vec<T> other = simd::shuffle<T>(x, x, partner);
    x = x > other ? x : other;
  }
  return x[0];
}

// Running softmax of the rows of one tile of queries.
template <typename T>
struct RunningSoftmax {
  std::vector<T> largest = std::vector<T>(kQueryTile, -std::numeric_limits<T>::infinity());
  std::vector<T> sum = std::vector<T>(kQueryTile);

  // Turns `visible` > 0 scores of row i into exp(score - largest), the rest of the row into zeros, and returns the
  // factor by which what was summed before shrinks.
  T add(std::int64_t i, T* scores, std::int64_t visible, std::int64_t width) {
    return visible == kKeyTile ? add_row<true>(i, scores, visible, width)
                               : add_row<false>(i, scores, visible, width);
  }

 private:
  template <bool kWhole>
  T add_row(std::int64_t i, T* scores, std::int64_t visible, std::int64_t width) {
    constexpr T kLowest = -std::numeric_limits<T>::infinity();
    Vec<T> high = simd::splat(kLowest);
    for (std::int64_t j = 0; j < visible; j += kLanes<T>) {
      const Vec<T> x = simd::load(scores + j);
      const Vec<T> seen = kWhole ? x : mask<T>(x, visible - j, kLowest);
      high = seen > high ? seen : high;
    }
    const T maximum = std::max(largest[i], largest_lane<T>(high));
    Vec<T> total{};
    for (std::int64_t j = 0; j < (kWhole ? kKeyTile : width); j += kLanes<T>) {
      const Vec<T> x = simd::exp(simd::load(scores + j) - maximum);
      const Vec<T> p = kWhole ? x : mask<T>(x, visible - j, T{});
      simd::store(scores + j, p);
      total += p;
    }
    const T shrink = largest[i] == maximum ? T{1} : simd::exp(simd::splat(largest[i] - maximum))[0];
    largest[i] = maximum;
    sum[i] = sum[i] * shrink + simd::sum<T>(total);
    return shrink;
  }
};

// One tile of queries of one head against all keys it sees.
template <typename T>
void forward_tile(const Sizes& n, std::int64_t first_query, const T* q, const T* k, const T* v,
                  T* out, T* lse, T scale) {
  const std::int64_t rows = std::min(kQueryTile, n.queries - first_query);
  const std::int64_t first_position = first_query + n.keys - n.queries;
  const std::int64_t num_keys = first_position + rows;  // of the last row
  const Scratch<T> packed_q(rows, n.dim);
  const Scratch<T> packed_k(kKeyTile, n.dim);
  const Scratch<T> k_columns(n.dim, kKeyTile);
  const Scratch<T> packed_v(kKeyTile, n.dim);
  const Scratch<T> scores(rows, kKeyTile);
  const Scratch<T> sums(rows, n.dim);
  sums.clear();
  pack(q + first_query * n.query_stride(), n.query_stride(), rows, n.dim, scale, packed_q.rows());
  RunningSoftmax<T> softmax;
  for (std::int64_t key = 0; key < num_keys; key += kKeyTile) {
    const std::int64_t width = std::min(kKeyTile, num_keys - key);
    pack(k + key * n.key_stride(), n.key_stride(), width, n.dim, T{1}, packed_k.rows());
    ttt_cpu::transpose(width, n.dim, packed_k.rows(), k_columns.rows());
    pack(v + key * n.key_stride(), n.key_stride(), width, n.dim, T{1}, packed_v.rows());
    const std::int64_t first = std::max<std::int64_t>(0, key - first_position);  // to see the tile
    ttt_cpu::multiply<Left::kPlain, T>(rows - first, width, n.dim, packed_q.rows().from(first),
                                       k_columns.rows(), {}, scores.rows().from(first));
    for (std::int64_t i = first; i < rows; ++i) {
      const std::int64_t visible = std::min(width, first_position + i + 1 - key);
      const T shrink = softmax.add(i, scores.rows().row(i), visible, width);
      if (shrink == T{1}) continue;
      T* row = sums.rows().row(i);
      for (std::int64_t f = 0; f < n.dim; f += kLanes<T>) {
        simd::store(row + f, simd::load(row + f) * shrink);
      }
    }
    ttt_cpu::multiply<Left::kPlain, T>(rows - first, n.dim, width, scores.rows().from(first),
                                       packed_v.rows(), sums.rows().from(first),
                                       sums.rows().from(first));
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    T* row = out + (first_query + i) * n.query_stride();
    for (std::int64_t f = 0; f < n.dim; ++f) row[f] = sums.rows().row(i)[f] / softmax.sum[i];
    if (lse != nullptr) lse[first_query + i] = softmax.largest[i] + std::log(softmax.sum[i]);
  }
}

template <typename T>
struct HeadGradient {
  const T *q, *k, *v, *out, *d_out;
  const T* lse;  // [T]
  T *d_q, *d_k, *d_v;
  std::int64_t d_key_stride;  // of d_k and d_v
};

// In place: row i of p from scores to exp(score - lse), 0 for keys that it does not see, and of d_scores from d_p to
// p (d_p - delta).
template <typename T>
void probabilities(const T* lse, const T* delta, Rows<T> p, Rows<T> d_scores, std::int64_t rows,
                   std::int64_t width, std::int64_t visible_to_first) {
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t visible = std::min(width, visible_to_first + i);
    for (std::int64_t j = 0; j < width; j += kLanes<T>) {
      const Vec<T> x = mask<T>(simd::exp(simd::load(p.row(i) + j) - lse[i]), visible - j, T{});
      simd::store(p.row(i) + j, x);
      simd::store(d_scores.row(i) + j, x * (simd::load(d_scores.row(i) + j) - delta[i]));
    }
  }
}

template <typename T>
std::vector<T> row_products(const Sizes& n, const T* a, const T* b) {
  std::vector<T> products(n.queries);
  for (std::int64_t t = 0; t < n.queries; ++t) {
    for (std::int64_t f = 0; f < n.dim; ++f) {
      products[t] += a[t * n.query_stride() + f] * b[t * n.query_stride() + f];
    }
  }
  return products;
}

// All gradients of one head. Key tiles outside, query tiles inside: d_k and d_v of a tile are complete after its turn.
template <typename T>
void backward_head(const Sizes& n, const HeadGradient<T>& g, T scale) {
  const std::int64_t stride = n.query_stride();
  const std::vector<T> delta = row_products(n, g.d_out, g.out);
  const Scratch<T> q(n.queries, n.dim);  // times scale
  const Scratch<T> d_out(n.queries, n.dim);
  const Scratch<T> d_q(n.queries, n.dim);
  pack(g.q, stride, n.queries, n.dim, scale, q.rows());
  pack(g.d_out, stride, n.queries, n.dim, T{1}, d_out.rows());
  d_q.clear();
  const Scratch<T> k(kKeyTile, n.dim);
  const Scratch<T> v(kKeyTile, n.dim);
  const Scratch<T> k_columns(n.dim, kKeyTile);
  const Scratch<T> v_columns(n.dim, kKeyTile);
  const Scratch<T> d_k(kKeyTile, n.dim);
  const Scratch<T> d_v(kKeyTile, n.dim);
  const Scratch<T> p(kQueryTile, kKeyTile);
  const Scratch<T> d_scores(kQueryTile, kKeyTile);
  for (std::int64_t key = 0; key < n.keys; key += kKeyTile) {
    const std::int64_t width = std::min(kKeyTile, n.keys - key);
    pack(g.k + key * n.key_stride(), n.key_stride(), width, n.dim, T{1}, k.rows());
    pack(g.v + key * n.key_stride(), n.key_stride(), width, n.dim, T{1}, v.rows());
    ttt_cpu::transpose(width, n.dim, k.rows(), k_columns.rows());
    ttt_cpu::transpose(width, n.dim, v.rows(), v_columns.rows());
    d_k.clear();
    d_v.clear();
    for (std::int64_t query = key; query < n.queries; query += kQueryTile) {
      const std::int64_t rows = std::min(kQueryTile, n.queries - query);
      const Rows<T> tile_q = q.rows().from(query);
      const Rows<T> tile_d_out = d_out.rows().from(query);
      const Rows<T> tile_d_q = d_q.rows().from(query);
      ttt_cpu::multiply<Left::kPlain, T>(rows, width, n.dim, tile_q, k_columns.rows(), {},
                                         p.rows());
      ttt_cpu::multiply<Left::kPlain, T>(rows, width, n.dim, tile_d_out, v_columns.rows(), {},
                                         d_scores.rows());
      probabilities(g.lse + query, delta.data() + query, p.rows(), d_scores.rows(), rows, width,
                    query - key + 1);
      ttt_cpu::multiply<Left::kTransposed, T>(width, n.dim, rows, p.rows(), tile_d_out, d_v.rows(),
                                              d_v.rows());
      ttt_cpu::multiply<Left::kTransposed, T>(width, n.dim, rows, d_scores.rows(), tile_q,
                                              d_k.rows(), d_k.rows());
      ttt_cpu::multiply<Left::kPlain, T>(rows, n.dim, width, d_scores.rows(), k.rows(), tile_d_q,
                                         tile_d_q);
    }
    unpack(d_k.rows(), width, n.dim, T{1}, g.d_k + key * g.d_key_stride, g.d_key_stride);
    unpack(d_v.rows(), width, n.dim, T{1}, g.d_v + key * g.d_key_stride, g.d_key_stride);
  }
  unpack(d_q.rows(), n.queries, n.dim, scale, g.d_q, stride);
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
    // With S = T, gradients by query head are laid out as the queries are.
    backward_head<T>(
        n,
        {views.q.data<T>() + queries, views.k.data<T>() + keys, views.v.data<T>() + keys,
         views.out.data<T>() + queries, views.d_out.data<T>() + queries,
         views.lse.data<T>() + i * n.queries, views.d_q.data<T>() + queries, d_k + queries,
         d_v + queries, n.query_stride()},
        static_cast<T>(scale));
  });
  if (is_grouped) {
    sum_groups(n, d_k, views.d_k.data<T>());
    sum_groups(n, d_v, views.d_v.data<T>());
  }
}

}  // namespace

void attention_forward(TensorView q, TensorView k, TensorView v, TensorView out, TensorView lse,
                       double scale, Stream& stream) {
  const Sizes n = sizes_of(q, k);
  expect_shape("v", v, k.shape());
  expect_shape("out", out, q.shape());
  if (!lse.empty()) expect_shape("lse", lse, {n.batch, n.heads, n.queries});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->attention_forward(q, k, v, out, lse, scale, stream);
  }
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
      forward_tile(n, tile * kQueryTile, q_data + queries, k_data + keys, v_data + keys,
                   out_data + queries, lse_data == nullptr ? nullptr : lse_data + head * n.queries,
                   static_cast<T>(scale));
    });
  });
}

void attention_backward(TensorView q, TensorView k, TensorView v, TensorView out, TensorView lse,
                        TensorView d_out, TensorView d_q, TensorView d_k, TensorView d_v,
                        double scale, Stream& stream) {
  const Sizes n = sizes_of(q, k);
  TTT_CHECK(n.queries == n.keys, "backward of {} queries against {} keys", n.queries, n.keys);
  expect_shape("v", v, k.shape());
  expect_shape("out", out, q.shape());
  expect_shape("lse", lse, {n.batch, n.heads, n.queries});
  expect_shape("d_out", d_out, q.shape());
  expect_shape("d_q", d_q, q.shape());
  expect_shape("d_k", d_k, k.shape());
  expect_shape("d_v", d_v, k.shape());
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->attention_backward(q, k, v, out, lse, d_out, d_q, d_k, d_v, scale, stream);
  }
  visit_real(q.dtype(), [&](auto scalar) {
    run_backward<decltype(scalar)>(n, {q, k, v, out, lse, d_out, d_q, d_k, d_v}, scale);
  });
}

}  // namespace ttt::kernels
