#pragma once
// One (batch, head) pair's working set: scratch, the state, and a gathered mini-batch.

#include <cstdint>
#include <cstring>
#include <vector>

#include "core/base/tensor.h"
#include "kernels/cpu/ttt_norm.h"
#include "kernels/ttt.h"

namespace ttt::kernels::ttt_cpu {

/// The extents of a call, as kernels/ttt.h names them.
struct Extents {
  std::int64_t batch = 0;
  std::int64_t tokens = 0;
  std::int64_t heads = 0;
  std::int64_t features = 0;         // F
  std::int64_t width = 0;            // columns of W1: F, or D for the MLP
  std::int64_t mini_batch_size = 0;  // K
  std::int64_t block_rows = 0;       // min(K, T): rows of scratch
  bool mlp = false;
  bool inner_norm = true;
  bool bias = true;

  [[nodiscard]] std::int64_t num_pairs() const { return batch * heads; }
  [[nodiscard]] std::int64_t num_blocks() const {
    return (tokens + mini_batch_size - 1) / mini_batch_size;
  }
  /// Mini-batches between two checkpoints: about 2 sqrt(count), as the checkpoints of all pairs are kept from forward
  /// to backward while the states inside a group exist once a thread.
  [[nodiscard]] std::int64_t group_size() const {
    std::int64_t size = 1;
    while (size * size < 4 * num_blocks()) ++size;
    return size;
  }
  [[nodiscard]] std::int64_t num_groups() const {
    return (num_blocks() + group_size() - 1) / group_size();
  }
  /// Elements of one pair's state.
  [[nodiscard]] std::int64_t state_size() const {
    const std::int64_t layers = mlp ? 2 : 1;
    return layers * features * width + (bias ? width + (mlp ? features : 0) : 0);
  }
};

/// Zeroed, aligned scratch of one thread.
template <typename T>
class Arena {
 public:
  Rows<T> rows(std::int64_t count, std::int64_t columns) {
    const std::int64_t stride = simd::padded<T>(columns);
    blocks_.push_back(Tensor::zeros(Shape{count * stride}, kDType<T>));
    return {blocks_.back().template data<T>(), stride};
  }
  T* vector(std::int64_t count) { return rows(1, count).data; }

 private:
  std::vector<Tensor> blocks_;
};

/// One layer of the inner model in scratch. Without options.bias b stays zero.
template <typename T>
struct Layer {
  Rows<T> w;
  T* b = nullptr;
};

template <typename T>
struct State {
  Layer<T> first, second;  // second: MLP only

  State() = default;
  State(const Extents& e, Arena<T>& arena) {
    first = {arena.rows(e.features, e.width), arena.vector(e.width)};
    if (e.mlp) second = {arena.rows(e.width, e.features), arena.vector(e.features)};
  }
};

/// Copies `rows` rows of `columns` elements between strides.
template <typename T>
void copy_rows(std::int64_t rows, std::int64_t columns, const T* from, std::int64_t from_stride,
               T* to, std::int64_t to_stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
    std::memcpy(to + i * to_stride, from + i * from_stride,
                static_cast<std::size_t>(columns) * sizeof(T));
  }
}

/// Visits the state's members in the order w1, b1, w2, b2: f(index, rows, columns, the Rows).
template <typename T, typename F>
void for_each_member(const Extents& e, const State<T>& state, F&& f) {
  f(0, e.features, e.width, state.first.w);
  if (e.bias) f(1, std::int64_t{1}, e.width, Rows<T>{state.first.b, simd::padded<T>(e.width)});
  if (!e.mlp) return;
  f(2, e.width, e.features, state.second.w);
  if (e.bias) {
    f(3, std::int64_t{1}, e.features, Rows<T>{state.second.b, simd::padded<T>(e.features)});
  }
}

inline const TensorView& member(const TttState& views, int index) {
  const TensorView* const members[] = {&views.w1, &views.b1, &views.w2, &views.b2};
  return *members[index];
}

/// Pair `pair` of `views` into scratch and back. An empty `views` reads as zero and is not written.
template <typename T>
void load_state(const Extents& e, const TttState& views, std::int64_t pair, const State<T>& state) {
  for_each_member(e, state, [&](int index, std::int64_t rows, std::int64_t columns, Rows<T> to) {
    const TensorView& view = member(views, index);
    if (view.empty()) {
      std::memset(to.data, 0, static_cast<std::size_t>(rows * to.stride) * sizeof(T));
    } else {
      copy_rows(rows, columns, view.data<T>() + pair * rows * columns, columns, to.data, to.stride);
    }
  });
}

template <typename T>
void store_state(const Extents& e, const State<T>& state, std::int64_t pair,
                 const TttState& views) {
  for_each_member(e, state, [&](int index, std::int64_t rows, std::int64_t columns, Rows<T> from) {
    const TensorView& view = member(views, index);
    if (view.empty()) return;
    copy_rows(rows, columns, from.data, from.stride, view.data<T>() + pair * rows * columns,
              columns);
  });
}

/// The state as one packed row of the checkpoints, and back.
template <typename T>
void pack_state(const Extents& e, const State<T>& state, T* packed) {
  for_each_member(e, state, [&](int, std::int64_t rows, std::int64_t columns, Rows<T> from) {
    copy_rows(rows, columns, from.data, from.stride, packed, columns);
    packed += rows * columns;
  });
}

template <typename T>
void unpack_state(const Extents& e, const T* packed, const State<T>& state) {
  for_each_member(e, state, [&](int, std::int64_t rows, std::int64_t columns, Rows<T> to) {
    copy_rows(rows, columns, packed, columns, to.data, to.stride);
    packed += rows * columns;
  });
}

/// Where one pair's rows lie in a [B, T, H, F] tensor.
template <typename T>
T* pair_rows(const Extents& e, const TensorView& view, std::int64_t pair, std::int64_t token) {
  const std::int64_t b = pair / e.heads;
  const std::int64_t h = pair % e.heads;
  return view.data<T>() + ((b * e.tokens + token) * e.heads + h) * e.features;
}

/// Rows that will be read or written soon, asked for a few at a time between products: the hardware does not foresee
/// jumps of H * F elements, and only a handful of misses can be under way at once.
class Ahead {
 public:
  static constexpr int kRead = 0;
  static constexpr int kWrite = 1;

  void clear() {
    items_.clear();
    next_ = 0;
    row_ = 0;
  }

  /// The rows of mini-batch `index` of `pair`, if there is one.
  template <typename T>
  void add(const Extents& e, const TensorView& view, std::int64_t pair, std::int64_t index,
           int access) {
    if (index < 0 || index >= e.num_blocks()) return;
    const std::int64_t token = index * e.mini_batch_size;
    const auto bytes = static_cast<std::int64_t>(sizeof(T)) * e.features;
    items_.push_back({reinterpret_cast<const std::byte*>(pair_rows<T>(e, view, pair, token)),
                      std::min(e.mini_batch_size, e.tokens - token), bytes, bytes * e.heads,
                      access});
  }

  void ask(int rows = 8) {
    for (int count = 0; count < rows && next_ < items_.size(); ++count) {
      const Item& item = items_[next_];
      for (std::int64_t i = 0; i < item.row_bytes; i += 64) {
        const std::byte* line = item.first + row_ * item.stride_bytes + i;
        if (item.access == kWrite) {
          __builtin_prefetch(line, 1);
        } else {
          __builtin_prefetch(line, 0);
        }
      }
      if (++row_ < item.rows) continue;
      row_ = 0;
      ++next_;
    }
  }

 private:
  struct Item {
    const std::byte* first;
    std::int64_t rows, row_bytes, stride_bytes;
    int access;
  };
  std::vector<Item> items_;
  std::size_t next_ = 0;
  std::int64_t row_ = 0;
};

/// One mini-batch, gathered. [k; q] is one matrix of 2 * rows rows.
template <typename T>
struct Block {
  std::int64_t rows = 0;
  bool bias = true;
  Rows<T> k, q, target;
  const T* scale = nullptr;  // c [K]
  T* lr = nullptr;           // l [rows], zero up to the padded count
  Norm<T> norm;
  mutable Ahead ahead;  // changes no value

  Block() = default;
  Block(const Extents& e, Arena<T>& arena) : bias(e.bias) {
    k = arena.rows(2 * e.block_rows, e.features);
    target = arena.rows(e.block_rows, e.features);
    lr = arena.vector(e.block_rows);
    norm = {e.inner_norm, e.features, arena.vector(e.features), arena.vector(e.features),
            arena.vector(e.features)};
    std::fill_n(norm.mask, e.features, T(1));
  }

  /// c_r: the scale of the last token, by which the state handed on steps.
  [[nodiscard]] T last_scale() const { return scale[rows - 1]; }

  void load_head(const Extents& e, const TttInputs& inputs, std::int64_t pair) {
    scale = inputs.token_scale.data<T>();
    if (!e.inner_norm) return;
    const std::int64_t first = pair % e.heads * e.features;
    std::copy_n(inputs.norm_weight.data<T>() + first, e.features, norm.weight);
    std::copy_n(inputs.norm_bias.data<T>() + first, e.features, norm.bias);
  }

  /// Gathers mini-batch `index` of `pair`; q only `with_q`.
  void load(const Extents& e, const TttInputs& inputs, std::int64_t pair, std::int64_t index,
            bool with_q = true) {
    const std::int64_t token = index * e.mini_batch_size;
    rows = std::min(e.mini_batch_size, e.tokens - token);
    q = k.from(rows);
    const std::int64_t stride = e.heads * e.features;
    copy_rows(rows, e.features, pair_rows<T>(e, inputs.k, pair, token), stride, k.data, k.stride);
    if (with_q) {
      copy_rows(rows, e.features, pair_rows<T>(e, inputs.q, pair, token), stride, q.data, q.stride);
    }
    copy_rows(rows, e.features, pair_rows<T>(e, inputs.v, pair, token), stride, target.data,
              target.stride);
    if (e.inner_norm) {
      for_each_vector<T>(rows, e.features, [&](std::int64_t i, std::int64_t j) {
        simd::store(target.row(i) + j, simd::load(target.row(i) + j) - simd::load(k.row(i) + j));
      });
    }
    std::fill_n(lr, simd::padded<T>(e.block_rows), T(0));
    const T* token_lr =
        inputs.token_lr.data<T>() + (pair / e.heads * e.tokens + token) * e.heads + pair % e.heads;
    for (std::int64_t i = 0; i < rows; ++i) lr[i] = token_lr[i * e.heads];
  }
};

}  // namespace ttt::kernels::ttt_cpu
