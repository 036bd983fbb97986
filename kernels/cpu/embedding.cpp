#include "kernels/embedding.h"

#include <algorithm>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/row_blocks.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

void check_ids(const std::int64_t* ids, std::int64_t tokens, std::int64_t vocabulary) {
  for (std::int64_t n = 0; n < tokens; ++n) {
    if (ids[n] < 0 || ids[n] >= vocabulary) {
      fail(ExitCode::kCorruptInput, "token id {} at position {} is outside the vocabulary [0, {})",
           ids[n], n, vocabulary);
    }
  }
}

}  // namespace

void embedding_forward(TensorView ids, TensorView table, TensorView y, Stream& stream) {
  const auto tokens = ids.size(0);
  const auto vocabulary = table.size(0);
  const auto channels = table.size(1);
  expect_shape("ids", ids, {tokens});
  expect_shape("table", table, {vocabulary, channels});
  expect_shape("y", y, {tokens, channels});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->embedding_forward(ids, table, y, stream);
  }
  const std::int64_t* const id = ids.data<std::int64_t>();
  check_ids(id, tokens, vocabulary);
  visit_real(table.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const table_data = table.data<T>();
    T* const y_data = y.data<T>();
    for_each_block(tokens, channels, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t n = begin; n < end; ++n) {
        std::copy_n(table_data + id[n] * channels, channels, y_data + n * channels);
      }
    });
  });
}

void embedding_backward(TensorView ids, TensorView d_y, TensorView d_table, Stream& stream) {
  const auto tokens = ids.size(0);
  const auto vocabulary = d_table.size(0);
  const auto channels = d_table.size(1);
  expect_shape("ids", ids, {tokens});
  expect_shape("d_y", d_y, {tokens, channels});
  expect_shape("d_table", d_table, {vocabulary, channels});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->embedding_backward(ids, d_y, d_table, stream);
  }
  const std::int64_t* const id = ids.data<std::int64_t>();
  check_ids(id, tokens, vocabulary);
  visit_real(d_table.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* const d_y_data = d_y.data<T>();
    T* const d_table_data = d_table.data<T>();
    // Threads share channels, not tokens: every element then adds up in token order. Slices are whole cache lines.
    constexpr std::int64_t kSlice = 64;
    const std::int64_t num_slices = (channels + kSlice - 1) / kSlice;
    for_each_block(num_slices, tokens * kSlice, [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t first = begin * kSlice;
      const std::int64_t count = std::min(channels, end * kSlice) - first;
      for (std::int64_t n = 0; n < tokens; ++n) {
        T* const to = d_table_data + id[n] * channels + first;
        const T* const from = d_y_data + n * channels + first;
#pragma omp simd
        for (std::int64_t c = 0; c < count; ++c) to[c] += from[c];
      }
    });
  });
}

}  // namespace ttt::kernels
