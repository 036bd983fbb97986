#pragma once
// What the generic CUDA kernels of the TTT inner loop work with: the extents of a call, matrices in scratch, products,
// the state, and a gathered mini-batch. The counterpart of kernels/cpu/ttt_block.h and ttt_matrix.h.
//
// One block of threads computes one (batch, head) pair at a time; all matrices are fp32, row-major, in global scratch
// of the block. A function here that is not about one warp or one element is called by all threads of the block and
// ends with a barrier: what it wrote may be read, and what it read may be overwritten.

#include <algorithm>
#include <cstdint>

#include "core/base/tensor.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/simt.h"
#include "kernels/ttt.h"

namespace ttt::kernels::cuda::generic {

constexpr int kThreads = 256;
constexpr int kLanes = 32;
constexpr int kWarps = kThreads / kLanes;

__device__ __forceinline__ int this_warp() { return static_cast<int>(threadIdx.x) / kLanes; }
__device__ __forceinline__ int this_lane() { return static_cast<int>(threadIdx.x) % kLanes; }

/// The extents of a call, as kernels/ttt.h names them.
struct Extents {
  std::int64_t batch, tokens, heads;
  std::int64_t features;         // F
  std::int64_t width;            // columns of W1: F, or D for the MLP
  std::int64_t mini_batch_size;  // K
  std::int64_t block_rows;       // min(K, T): rows of scratch
  std::int64_t num_blocks;       // mini-batches
  std::int64_t group_size;       // mini-batches between two checkpoints
  bool mlp, inner_norm, bias;

  __host__ __device__ std::int64_t num_pairs() const { return batch * heads; }
  __host__ __device__ std::int64_t num_groups() const {
    return (num_blocks + group_size - 1) / group_size;
  }
  /// Elements of one pair's state.
  __host__ __device__ std::int64_t state_size() const {
    const std::int64_t layers = mlp ? 2 : 1;
    return layers * features * width + (bias ? width + (mlp ? features : 0) : 0);
  }
};

inline Extents extents_of(const TttInputs& inputs, const TttOptions& options,
                          const TttState& initial) {
  Extents e{};
  e.batch = inputs.q.size(0);
  e.tokens = inputs.q.size(1);
  e.heads = inputs.q.size(2);
  e.features = inputs.q.size(3);
  e.width = initial.w1.size(3);
  e.mini_batch_size = options.mini_batch_size;
  e.block_rows = std::min(e.mini_batch_size, e.tokens);
  e.num_blocks = (e.tokens + e.mini_batch_size - 1) / e.mini_batch_size;
  // About 2 sqrt(count): checkpoints of all layers are kept until backward, a group's states exist once.
  e.group_size = 1;
  while (e.group_size * e.group_size < 4 * e.num_blocks) ++e.group_size;
  e.mlp = options.model == InnerModel::kMlp;
  e.inner_norm = options.inner_norm;
  e.bias = options.bias;
  return e;
}

struct Rows {
  float* data;
  std::int64_t stride;

  __device__ float* row(std::int64_t i) const { return data + i * stride; }
  __device__ float& at(std::int64_t i, std::int64_t j) const { return data[i * stride + j]; }
  /// From row `first` on.
  __device__ Rows from(std::int64_t first) const { return {row(first), stride}; }
};

/// Hands out the scratch of one block of threads; with a null base it only counts.
class Arena {
 public:
  __host__ __device__ explicit Arena(float* base) : base_(base) {}

  __host__ __device__ float* vector(std::int64_t count) {
    constexpr std::int64_t kLine = 32;  // floats of a cache line
    float* const first = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (count + kLine - 1) / kLine * kLine;
    return first;
  }
  __host__ __device__ Rows rows(std::int64_t count, std::int64_t columns) {
    return {vector(count * columns), columns};
  }
  __host__ __device__ std::int64_t used() const { return used_; }

 private:
  float* base_;
  std::int64_t used_ = 0;
};

/// f(i, j) for all i, j; by one thread.
template <typename F>
__device__ __forceinline__ void for_each_entry(std::int64_t rows, std::int64_t columns, F&& f) {
  for (std::int64_t i = this_warp(); i < rows; i += kWarps) {
    for (std::int64_t j = this_lane(); j < columns; j += kLanes) f(i, j);
  }
  __syncthreads();
}

/// f(i) by all lanes of one warp.
template <typename F>
__device__ __forceinline__ void for_each_row(std::int64_t rows, F&& f) {
  for (std::int64_t i = this_warp(); i < rows; i += kWarps) f(i);
  __syncthreads();
}

/// f(i) by one thread.
template <typename F>
__device__ __forceinline__ void for_each_index(std::int64_t count, F&& f) {
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) f(i);
  __syncthreads();
}

/// The sum over the warp of f(j) for j in [0, columns), in every lane.
template <typename F>
__device__ __forceinline__ auto row_sum(std::int64_t columns, F&& f) {
  decltype(f(columns)) sum = 0;
  for (std::int64_t j = this_lane(); j < columns; j += kLanes) sum += f(j);
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffU, sum, distance);
  }
  return sum;
}

/// A factor of a product: element (i, j) is data[i * down + j * across].
struct Factor {
  const float* data;
  std::int64_t down, across;
};
__device__ __forceinline__ Factor plain(const Rows& x) { return {x.data, x.stride, 1}; }
__device__ __forceinline__ Factor transposed(const Rows& x) { return {x.data, 1, x.stride}; }

/// [rows, inner] times [inner, columns].
struct ProductSize {
  std::int64_t rows, columns, inner;
};

/// use(i, j, sum over n of left(i, n) right(n, j)) for all i, j; one thread sums an element, n ascending.
template <typename Use>
__device__ __forceinline__ void multiply(const ProductSize& size, const Factor& left,
                                         const Factor& right, Use&& use) {
  constexpr int kTileRows = 4;  // of a thread, which share every element of `right` that it loads
  const std::int64_t column_tiles = (size.columns + kLanes - 1) / kLanes;
  const std::int64_t tiles = (size.rows + kTileRows - 1) / kTileRows * column_tiles;
  for (std::int64_t tile = this_warp(); tile < tiles; tile += kWarps) {
    const std::int64_t first = tile / column_tiles * kTileRows;
    const std::int64_t j = tile % column_tiles * kLanes + this_lane();
    if (j >= size.columns) continue;
    const float* from_left[kTileRows];
    for (int t = 0; t < kTileRows; ++t) {  // beyond the last row: that row again, unused
      from_left[t] = left.data + (first + t < size.rows ? first + t : size.rows - 1) * left.down;
    }
    const float* from_right = right.data + j * right.across;
    float sums[kTileRows] = {};
#pragma unroll 8
    for (std::int64_t n = 0; n < size.inner; ++n) {
      const float x = from_right[n * right.down];
      for (int t = 0; t < kTileRows; ++t) sums[t] += from_left[t][n * left.across] * x;
    }
    for (int t = 0; t < kTileRows; ++t) {
      if (first + t < size.rows) use(first + t, j, sums[t]);
    }
  }
  __syncthreads();
}

__device__ inline void copy_floats(std::int64_t count, const float* from, float* to) {
  for_each_index(count, [&](std::int64_t i) { to[i] = from[i]; });
}
__device__ inline void clear_floats(std::int64_t count, float* to) {
  for_each_index(count, [&](std::int64_t i) { to[i] = 0.0F; });
}

/// One layer of the inner model; b is null without options.bias.
struct Layer {
  Rows w;
  float* b;

  __device__ float bias(std::int64_t j) const { return b == nullptr ? 0.0F : b[j]; }
};

struct State {
  Layer first, second;  // second: MLP only
};

/// The tensors of a TttState as a kernel takes them; null where one is empty.
struct StateTensors {
  float *w1, *b1, *w2, *b2;
};

inline float* floats_of(const TensorView& view) {
  return view.empty() ? nullptr : view.data<float>();
}
inline StateTensors tensors_of(const TttState& state) {
  return {floats_of(state.w1), floats_of(state.b1), floats_of(state.w2), floats_of(state.b2)};
}

/// Visits w1, b1, w2, b2 as far as the options have them: f(the member of StateTensors, elements of one pair).
template <typename F>
__device__ __forceinline__ void for_each_member(const Extents& e, F&& f) {
  f(&StateTensors::w1, e.features * e.width);
  if (e.bias) f(&StateTensors::b1, e.width);
  if (!e.mlp) return;
  f(&StateTensors::w2, e.features * e.width);
  if (e.bias) f(&StateTensors::b2, e.features);
}

/// The state of `pair` where it lies in `tensors`.
__device__ inline State state_in(const Extents& e, const StateTensors& tensors, std::int64_t pair) {
  State state{};
  state.first = {{tensors.w1 + pair * e.features * e.width, e.width},
                 e.bias ? tensors.b1 + pair * e.width : nullptr};
  if (!e.mlp) return state;
  state.second = {{tensors.w2 + pair * e.width * e.features, e.features},
                  e.bias ? tensors.b2 + pair * e.features : nullptr};
  return state;
}

/// The state whose members lie packed from `base` on, in the order w1, b1, w2, b2: in scratch and in checkpoints.
__device__ inline State packed_state(const Extents& e, float* base) {
  StateTensors tensors{};
  tensors.w1 = base;
  tensors.b1 = tensors.w1 + e.features * e.width;
  tensors.w2 = tensors.b1 + (e.bias ? e.width : 0);
  tensors.b2 = tensors.w2 + (e.mlp ? e.width * e.features : 0);
  return state_in(e, tensors, 0);
}

/// Pair `pair` of `tensors` into a packed state and back. A null tensor reads as zero and is not written.
__device__ inline void load_state(const Extents& e, const StateTensors& tensors, std::int64_t pair,
                                  float* packed) {
  for_each_member(e, [&](auto member, std::int64_t size) {
    const float* const tensor = tensors.*member;
    if (tensor == nullptr) {
      clear_floats(size, packed);
    } else {
      copy_floats(size, tensor + pair * size, packed);
    }
    packed += size;
  });
}
__device__ inline void store_state(const Extents& e, const float* packed, std::int64_t pair,
                                   const StateTensors& tensors) {
  for_each_member(e, [&](auto member, std::int64_t size) {
    float* const tensor = tensors.*member;
    if (tensor != nullptr) copy_floats(size, packed, tensor + pair * size);
    packed += size;
  });
}

/// TttInputs as a kernel takes them; T is the element type of activations.
template <typename T>
struct InputTensors {
  const T *q, *k, *v;
  const float *token_lr, *token_scale, *norm_weight, *norm_bias;
};

template <typename T>
InputTensors<T> tensors_of(const TttInputs& inputs) {
  return {inputs.q.data<T>(),
          inputs.k.data<T>(),
          inputs.v.data<T>(),
          floats_of(inputs.token_lr),
          floats_of(inputs.token_scale),
          floats_of(inputs.norm_weight),
          floats_of(inputs.norm_bias)};
}

/// Where a pair's rows from `token` on lie in a [B, T, H, F] tensor; they are heads * features apart.
template <typename T>
__device__ __forceinline__ T* pair_rows(const Extents& e, T* tensor, std::int64_t pair,
                                        std::int64_t token) {
  return tensor + ((pair / e.heads * e.tokens + token) * e.heads + pair % e.heads) * e.features;
}
/// The same for a [B, T, H] tensor; tokens are `heads` apart.
template <typename T>
__device__ __forceinline__ T* pair_tokens(const Extents& e, T* tensor, std::int64_t pair,
                                          std::int64_t token) {
  return tensor + (pair / e.heads * e.tokens + token) * e.heads + pair % e.heads;
}

template <typename T>
__device__ void get_rows(const Extents& e, std::int64_t rows, const T* from, Rows to) {
  const std::int64_t stride = e.heads * e.features;
  for_each_entry(rows, e.features, [&](std::int64_t i, std::int64_t j) {
    to.at(i, j) = load_float(from[i * stride + j]);
  });
}
template <typename T>
__device__ void put_rows(const Extents& e, std::int64_t rows, Rows from, T* to) {
  const std::int64_t stride = e.heads * e.features;
  for_each_entry(rows, e.features, [&](std::int64_t i, std::int64_t j) {
    store_float(&to[i * stride + j], from.at(i, j));
  });
}

/// gamma and beta of the pair's head; without `enabled` LN is the identity.
struct Norm {
  bool enabled;
  std::int64_t columns;
  const float *weight, *bias;
};

/// One mini-batch, gathered. [k; q] is one matrix of 2 * rows rows.
struct Block {
  Extents e;
  std::int64_t rows;
  Rows k, q, target;
  float* lr;           // l [rows]
  const float* scale;  // c [K]
  Norm norm;

  Block() = default;
  __host__ __device__ Block(const Extents& extents, Arena& arena)
      : e(extents),
        rows(0),
        k(arena.rows(2 * extents.block_rows, extents.features)),
        q(k),
        target(arena.rows(extents.block_rows, extents.features)),
        lr(arena.vector(extents.block_rows)),
        scale(nullptr),
        norm{} {}

  /// c_r: the scale of the last token, by which the state handed on steps.
  __device__ float last_scale() const { return scale[rows - 1]; }

  /// Gathers mini-batch `index` of `pair`. The block of threads shares this object: one thread changes it.
  template <typename T>
  __device__ void load(const InputTensors<T>& inputs, std::int64_t pair, std::int64_t index) {
    const std::int64_t token = index * e.mini_batch_size;
    if (threadIdx.x == 0) {
      rows = e.tokens - token < e.mini_batch_size ? e.tokens - token : e.mini_batch_size;
      q = k.from(rows);
      scale = inputs.token_scale;
      const std::int64_t first = pair % e.heads * e.features;
      norm = {e.inner_norm, e.features, nullptr, nullptr};
      if (e.inner_norm) {
        norm.weight = inputs.norm_weight + first;
        norm.bias = inputs.norm_bias + first;
      }
    }
    __syncthreads();
    get_rows(e, rows, pair_rows(e, inputs.k, pair, token), k);
    get_rows(e, rows, pair_rows(e, inputs.q, pair, token), q);
    get_rows(e, rows, pair_rows(e, inputs.v, pair, token), target);
    if (e.inner_norm) {
      for_each_entry(rows, e.features,
                     [&](std::int64_t i, std::int64_t j) { target.at(i, j) -= k.at(i, j); });
    }
    const float* token_lr = pair_tokens(e, inputs.token_lr, pair, token);
    for_each_index(rows, [&](std::int64_t i) { lr[i] = token_lr[i * e.heads]; });
  }
};

/// Scratch for as many blocks of threads as run at once; they take pair after pair.
struct Scratch {
  Tensor memory;
  LaunchShape shape;
  std::int64_t floats_per_block = 0;

  /// `Worker(extents, arena)` is what one block of threads needs.
  template <typename Worker>
  static Scratch of(const Extents& e) {
    constexpr std::int64_t kMaxBlocks = 1024;                   // no device runs more at once
    constexpr std::int64_t kMaxFloats = std::int64_t{1} << 28;  // 1 GiB, where one block needs less
    Arena arena(nullptr);
    static_cast<void>(Worker(e, arena));
    const std::int64_t fitting = std::clamp<std::int64_t>(kMaxFloats / arena.used(), 1, kMaxBlocks);
    const std::int64_t blocks = std::min(fitting, e.num_pairs());
    return {Tensor({blocks * arena.used()}, DType::kF32),
            {dim3(static_cast<unsigned>(blocks)), dim3(kThreads)},
            arena.used()};
  }
};

/// f(pair, worker) for this block's pairs, with a `Worker` in shared memory over its part of the scratch.
template <typename Worker, typename Call, typename F>
__device__ __forceinline__ void for_each_pair(const Call& call, F&& f) {
  __shared__ Worker worker;
  if (threadIdx.x == 0) {
    Arena arena(call.scratch + blockIdx.x * call.floats_per_block);
    worker = Worker(call.e, arena);
  }
  __syncthreads();
  for (std::int64_t pair = blockIdx.x; pair < call.e.num_pairs(); pair += gridDim.x) {
    f(pair, worker);
  }
}

}  // namespace ttt::kernels::cuda::generic
