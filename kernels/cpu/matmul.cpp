#include "kernels/matmul.h"

#include <algorithm>

#include "kernels/activation.h"
#include "kernels/cpu/bf16_gemm.h"
#include "kernels/cpu/blas.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/few_rows.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

using cpu::Op;

// A block of C, measured: smaller blocks pack their operands too often, larger ones leave threads idle.
constexpr std::int64_t kBlockRows = 512;
constexpr std::int64_t kBlockCols = 384;
constexpr std::int64_t kBlockRowsBF16 = 256;

// C [m, n] = op(A) op(B), plus C when `accumulate`; `inner` is the extent summed over.
struct Product {
  Op op_a = Op::kNone;
  TensorView a;
  Op op_b = Op::kNone;
  TensorView b;
  TensorView c;
  std::int64_t inner = 0;
  bool accumulate = false;
};

// First element of row `begin` of op(X), or of column `begin` of op(X).
template <typename T>
const T* row_of(Op op, const T* x, std::int64_t ld, std::int64_t begin) {
  return op == Op::kNone ? x + begin * ld : x + begin;
}
template <typename T>
const T* col_of(Op op, const T* x, std::int64_t ld, std::int64_t begin) {
  return op == Op::kNone ? x + begin : x + begin * ld;
}

template <typename T>
void multiply_native(const Product& product) {
  const T* a = product.a.data<T>();
  const T* b = product.b.data<T>();
  T* c = product.c.data<T>();
  const std::int64_t ld_a = std::max<std::int64_t>(product.a.size(1), 1);
  const std::int64_t ld_b = std::max<std::int64_t>(product.b.size(1), 1);
  const std::int64_t ld_c = product.c.size(1);
  const T beta = product.accumulate ? T{1} : T{0};
  const cpu::Partition rows(product.c.size(0), kBlockRows);
  const cpu::Partition cols(product.c.size(1), kBlockCols);
  // Neighbours in the row direction share a block of B, by far the larger operand in the head.
  cpu::for_each_block(rows.count() * cols.count(), [&](std::int64_t i) {
    const std::int64_t row = rows.begin(i % rows.count());
    const std::int64_t col = cols.begin(i / rows.count());
    cpu::gemm(product.op_a, product.op_b, rows.size(i % rows.count()), cols.size(i / rows.count()),
              product.inner, T{1}, row_of(product.op_a, a, ld_a, row), ld_a,
              col_of(product.op_b, b, ld_b, col), ld_b, beta, c + row * ld_c + col, ld_c);
  });
}

// Columns [begin, begin + count) of `from`, dense: oneDNN's fast products take no strided operands.
Tensor pack_columns(const TensorView& from, std::int64_t begin, std::int64_t count) {
  Tensor packed({from.size(0), count}, DType::kBF16);
  const BFloat16* source = from.data<BFloat16>() + begin;
  for (std::int64_t row = 0; row < from.size(0); ++row) {
    std::copy_n(source + row * from.size(1), count, packed.data<BFloat16>() + row * count);
  }
  return packed;
}

void multiply_amx(const Product& product) {
  Tensor rounded_a;
  Tensor rounded_b;
  TensorView a = product.a;
  TensorView b = product.b;
  if (a.dtype() == DType::kF32) a = rounded_a = cpu::to_bf16(a);
  if (b.dtype() == DType::kF32) b = rounded_b = cpu::to_bf16(b);
  const std::int64_t cols = product.c.size(1);
  const cpu::Partition rows(product.c.size(0), kBlockRowsBF16);
  cpu::for_each_block(rows.count(), [&](std::int64_t i) {
    const std::int64_t begin = rows.begin(i);
    const std::int64_t count = rows.size(i);
    const bool is_transposed = product.op_a == Op::kTranspose;
    const Tensor packed = is_transposed ? pack_columns(a, begin, count) : Tensor();
    const BFloat16* block_a =
        is_transposed ? packed.data<BFloat16>() : a.data<BFloat16>() + begin * a.size(1);
    cpu::bf16_gemm(product.op_a, product.op_b, count, cols, product.inner, block_a,
                   is_transposed ? count : a.size(1), b.data<BFloat16>(), b.size(1),
                   product.accumulate, product.c.data<float>() + begin * cols, cols);
  });
}

void multiply_bf16(const Product& product) {
  if (product.inner == 0 || product.c.numel() == 0) {
    if (!product.accumulate) fill(product.c, 0);
    return;
  }
  if (cpu::prefers_bf16_gemm()) {
    multiply_amx(product);
    return;
  }
  const Tensor a = cpu::to_bf16_values(product.a);
  const Tensor b = cpu::to_bf16_values(product.b);
  multiply_native<float>(
      {product.op_a, a, product.op_b, b, product.c, product.inner, product.accumulate});
}

void expect_operands(DType a, DType b, DType c) {
  TTT_CHECK(a == c && b == c, "operands {} and {} of a product to {}", name_of(a), name_of(b),
            name_of(c));
}

void multiply(const Product& product, Precision precision) {
  const DType a = product.a.dtype();
  const DType b = product.b.dtype();
  const DType c = product.c.dtype();
  if (precision == Precision::kBF16) {
    const auto is_operand = [](DType dtype) {
      return dtype == DType::kF32 || dtype == DType::kBF16;
    };
    TTT_CHECK(is_operand(a) && is_operand(b) && c == DType::kF32,
              "a bf16 product takes F32 or BF16 and gives F32; got {} and {} to {}", name_of(a),
              name_of(b), name_of(c));
    multiply_bf16(product);
    return;
  }
  expect_operands(a, b, c);
  visit_real(c, [&](auto scalar) { multiply_native<decltype(scalar)>(product); });
}

}  // namespace

void linear_forward(TensorView x, TensorView w, TensorView residual, TensorView y,
                    Precision precision, Stream& stream) {
  const bool is_stack = w.shape().rank() == 3;
  TTT_CHECK(x.shape().rank() == 2 && (w.shape().rank() == 2 || is_stack),
            "x {} must be a matrix and w {} one or several", x.shape().str(), w.shape().str());
  if (is_stack) {
    expect_shape("w", w, {w.size(0), w.size(1), x.size(1)});
    expect_shape("y", y, {w.size(0), x.size(0), w.size(1)});
  } else {
    expect_shape("w", w, {w.size(0), x.size(1)});
    expect_shape("y", y, {x.size(0), w.size(0)});
  }
  if (!residual.empty()) {
    expect_shape("residual", residual, y.shape());
    TTT_CHECK(residual.dtype() == y.dtype() && residual.raw() != y.raw(),
              "a residual of {} for y of {}: of one type and apart", name_of(residual.dtype()),
              name_of(y.dtype()));
  }
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->linear_forward(x, w, residual, y, precision, stream);
  }
  if (is_stack) {
    for (std::int64_t s = 0; s < w.size(0); ++s) {
      linear_forward(x, w.at(s), residual.empty() ? residual : residual.at(s), y.at(s), precision,
                     stream);
    }
    return;
  }
  if (precision == Precision::kNative && x.size(0) <= cpu::kFewRows) {
    expect_operands(x.dtype(), w.dtype(), y.dtype());
    cpu::few_rows_forward(x, w, y);
  } else {
    multiply({Op::kNone, x, Op::kTranspose, w, y, x.size(1), false}, precision);
  }
  if (!residual.empty()) add(residual, y, stream);
}

void linear_backward_input(TensorView d_y, TensorView w, TensorView d_x, Accumulate accumulate,
                           Precision precision, Stream& stream) {
  TTT_CHECK(d_y.shape().rank() == 2 && w.shape().rank() == 2, "d_y {} and w {} must be matrices",
            d_y.shape().str(), w.shape().str());
  expect_shape("w", w, {d_y.size(1), w.size(1)});
  expect_shape("d_x", d_x, {d_y.size(0), w.size(1)});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->linear_backward_input(d_y, w, d_x, accumulate, precision, stream);
  }
  multiply({Op::kNone, d_y, Op::kNone, w, d_x, d_y.size(1), accumulate == Accumulate::kYes},
           precision);
}

void linear_backward_weight(TensorView d_y, TensorView x, TensorView d_w, Precision precision,
                            Stream& stream) {
  TTT_CHECK(d_y.shape().rank() == 2 && x.shape().rank() == 2, "d_y {} and x {} must be matrices",
            d_y.shape().str(), x.shape().str());
  expect_shape("x", x, {d_y.size(0), x.size(1)});
  expect_shape("d_w", d_w, {d_y.size(1), x.size(1)});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->linear_backward_weight(d_y, x, d_w, precision, stream);
  }
  multiply({Op::kTranspose, d_y, Op::kNone, x, d_w, d_y.size(0), true}, precision);
}

}  // namespace ttt::kernels
