#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "kernels/attention.h"
#include "kernels/cuda/attention_library.h"
#include "kernels/cuda/attention_mma_backward.h"
#include "kernels/cuda/attention_mma_forward.h"
#include "kernels/cuda/attention_plain.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"

// BF16 of head dims 64, 96 and 128 goes to the tensor cores (or to the library that TTT_ATTENTION chooses), everything
// else to fp32 arithmetic in shared memory.

namespace ttt::kernels::cuda {
namespace {

AttentionSizes sizes_of(const TensorView& q, const TensorView& k) {
  return {q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), q.size(3)};
}

LaunchShape blocks_of(std::int64_t heads, std::int64_t rows, int rows_of_block, int threads,
                      std::size_t shared_bytes) {
  const std::int64_t tiles = (rows + rows_of_block - 1) / rows_of_block;
  return {dim3(static_cast<unsigned>(heads * tiles)), dim3(static_cast<unsigned>(threads)),
          shared_bytes};
}

// Copies of 16 bytes need rows that begin at such addresses; heads of these dims keep the alignment of the tensor.
bool serve_tensor_cores(std::int64_t dim, std::initializer_list<TensorView> tensors) {
  if (dim != 64 && dim != 96 && dim != 128) return false;
  return std::ranges::all_of(tensors, [](const TensorView& tensor) {
    return tensor.dtype() == DType::kBF16 &&
           reinterpret_cast<std::uintptr_t>(tensor.raw()) % 16 == 0;
  });
}

// f(std::integral_constant<int, dim>) of a head dim that the tensor cores serve.
template <typename F>
void visit_head_dim(std::int64_t dim, F&& f) {
  switch (dim) {
    case 64:
      return f(std::integral_constant<int, 64>{});
    case 96:
      return f(std::integral_constant<int, 96>{});
    case 128:
      return f(std::integral_constant<int, 128>{});
    default:
      TTT_CHECK(false, "no tensor-core attention of head dim {}", dim);
  }
}

std::int64_t shared_bytes() { return tiles::for_tiles(block_limits().shared_bytes); }

[[noreturn]] void fail_head_dim(std::int64_t dim, std::int64_t bytes) {
  fail(ExitCode::kUsage,
       "attention with head dim {} needs {} bytes of shared memory, {} can be had: use more heads "
       "of a smaller dim",
       dim, bytes, shared_bytes());
}

template <typename T, int kRows, int kColumns>
void launch_plain_forward(const AttentionForward<T>& call, Stream& stream) {
  using Tile = PlainForwardTile<kRows, kColumns>;
  const AttentionSizes& n = call.n;
  launch(plain_forward_kernel<T, kRows, kColumns>,
         blocks_of(n.batch * n.heads, n.queries, Tile::kQueries, tiles::kThreads,
                   static_cast<std::size_t>(Tile::shared_bytes(n.dim))),
         stream, call);
}

// The largest tiles that fit; few queries waste the rows of a large one.
template <typename T>
void plain_forward(const AttentionForward<T>& call, Stream& stream) {
  const std::int64_t dim = call.n.dim;
  if (call.n.queries > 16 && PlainForwardTile<4, 4>::shared_bytes(dim) <= shared_bytes()) {
    return launch_plain_forward<T, 4, 4>(call, stream);
  }
  if (PlainForwardTile<1, 4>::shared_bytes(dim) <= shared_bytes()) {
    return launch_plain_forward<T, 1, 4>(call, stream);
  }
  const std::int64_t least = PlainForwardTile<1, 1>::shared_bytes(dim);
  if (least > shared_bytes()) fail_head_dim(dim, least);
  launch_plain_forward<T, 1, 1>(call, stream);
}

void mma_forward(const AttentionForward<BFloat16>& call, Stream& stream) {
  visit_head_dim(call.n.dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    using Tile = attention_mma::ForwardTile<kDim>;
    launch(attention_mma::forward_kernel<kDim>,
           blocks_of(call.n.batch * call.n.heads, call.n.queries, Tile::kQueries,
                     attention_mma::kThreads, Tile::kSharedBytes),
           stream, call);
  });
}

template <typename T, int kRows>
void launch_plain_backward(const AttentionBackward<T>& call, Stream& stream) {
  using Tile = PlainBackwardTile<kRows>;
  const AttentionSizes& n = call.n;
  const auto bytes = static_cast<std::size_t>(Tile::shared_bytes(n.dim));
  launch(plain_backward_keys_kernel<T, kRows>,
         blocks_of(n.batch * n.key_heads, n.keys, Tile::kSize, tiles::kThreads, bytes), stream,
         call);
  launch(plain_backward_queries_kernel<T, kRows>,
         blocks_of(n.batch * n.heads, n.queries, Tile::kSize, tiles::kThreads, bytes), stream,
         call);
}

template <typename T>
void plain_backward(const AttentionBackward<T>& call, Stream& stream) {
  const std::int64_t dim = call.n.dim;
  if (PlainBackwardTile<4>::shared_bytes(dim) <= shared_bytes()) {
    return launch_plain_backward<T, 4>(call, stream);
  }
  if (PlainBackwardTile<2>::shared_bytes(dim) <= shared_bytes()) {
    return launch_plain_backward<T, 2>(call, stream);
  }
  const std::int64_t least = PlainBackwardTile<1>::shared_bytes(dim);
  if (least > shared_bytes()) fail_head_dim(dim, least);
  launch_plain_backward<T, 1>(call, stream);
}

// 12.x and 8.6 give a block too little for head dim 128.
bool has_mma_backward(std::int64_t dim) {
  bool fits = false;
  visit_head_dim(dim, [&](auto head_dim) {
    constexpr int kDim = decltype(head_dim)::value;
    constexpr std::size_t kBytes = std::max(attention_mma::BackwardKeysTile<kDim>::kSharedBytes,
                                            attention_mma::BackwardQueriesTile<kDim>::kSharedBytes);
    fits = static_cast<std::int64_t>(kBytes) <= block_limits().shared_bytes;
  });
  return fits;
}

void mma_backward(const AttentionBackward<BFloat16>& call, Stream& stream) {
  visit_head_dim(call.n.dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    using Keys = attention_mma::BackwardKeysTile<kDim>;
    using Queries = attention_mma::BackwardQueriesTile<kDim>;
    const AttentionSizes& n = call.n;
    launch(attention_mma::backward_keys_kernel<kDim>,
           blocks_of(n.batch * n.key_heads, n.keys, Keys::kKeys, attention_mma::kThreads,
                     Keys::kSharedBytes),
           stream, call);
    launch(attention_mma::backward_queries_kernel<kDim>,
           blocks_of(n.batch * n.heads, n.queries, Queries::kQueries, attention_mma::kThreads,
                     Queries::kSharedBytes),
           stream, call);
  });
}

}  // namespace

// Decoding stays here.
const AttentionLibrary* library_for(TensorView q, TensorView k,
                                    std::initializer_list<TensorView> all) {
  const std::int64_t tokens = q.size(1);
  if (tokens == 1 || tokens != k.size(1) || !serve_tensor_cores(q.size(3), all)) return nullptr;
  return attention_library();
}

void attention_forward(TensorView q, TensorView k, TensorView v, TensorView out, TensorView lse,
                       double scale, Stream& stream) {
  if (const AttentionLibrary* library = library_for(q, k, {q, k, v, out})) {
    return library->forward(q, k, v, out, lse, scale, stream);
  }
  visit_activation_type(q.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const AttentionForward<T> call{sizes_of(q, k),
                                   q.data<T>(),
                                   k.data<T>(),
                                   v.data<T>(),
                                   out.data<T>(),
                                   lse.empty() ? nullptr : lse.data<float>(),
                                   static_cast<float>(scale)};
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (serve_tensor_cores(call.n.dim, {q, k, v, out})) return mma_forward(call, stream);
    }
    plain_forward(call, stream);
  });
}

void attention_backward(TensorView q, TensorView k, TensorView v, TensorView out, TensorView lse,
                        TensorView d_out, TensorView d_q, TensorView d_k, TensorView d_v,
                        double scale, Stream& stream) {
  if (const AttentionLibrary* library = library_for(q, k, {q, k, v, out, d_out, d_q, d_k, d_v})) {
    if (library->backward(q, k, v, out, lse, d_out, d_q, d_k, d_v, scale, stream)) return;
  }
  visit_activation_type(q.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const AttentionSizes n = sizes_of(q, k);
    const bool is_mma =
        serve_tensor_cores(n.dim, {q, k, v, d_out, d_q, d_k, d_v}) && has_mma_backward(n.dim);
    const Tensor terms({n.batch, n.heads, n.queries, 2}, DType::kF32);
    launch(attention_row_terms_kernel<T>,
           blocks_of(1, n.batch * n.queries * n.heads, kRowTermsWarps, 32 * kRowTermsWarps, 0),
           stream, n, out.data<T>(), d_out.data<T>(), lse.data<float>(),
           is_mma ? attention_mma::kLog2E : 1.0F, terms.data<float>());
    const AttentionBackward<T> call{n,
                                    q.data<T>(),
                                    k.data<T>(),
                                    v.data<T>(),
                                    d_out.data<T>(),
                                    terms.data<float>(),
                                    d_q.data<T>(),
                                    d_k.data<T>(),
                                    d_v.data<T>(),
                                    static_cast<float>(scale)};
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (is_mma) return mma_backward(call, stream);
    }
    plain_backward(call, stream);
  });
}

}  // namespace ttt::kernels::cuda
