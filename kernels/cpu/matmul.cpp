#include "kernels/matmul.h"

#include <algorithm>

#include "kernels/cpu/bf16_gemm.h"
#include "kernels/cpu/blas.h"
#include "kernels/cpu/dispatch.h"

namespace ttt::kernels {
namespace {

using cpu::Op;

// A block of C, measured: smaller blocks pack their operands too often, larger ones leave threads idle.
constexpr std::int64_t kBlockRows = 512;
constexpr std::int64_t kBlockCols = 384;

// C [m, n] = op(A) op(B), plus C when `accumulate`; `inner` is the extent summed over.
struct Product {
  Op op_a;
  TensorView a;
  Op op_b;
  TensorView b;
  TensorView c;
  std::int64_t inner;
  bool accumulate;
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

// block(m, n, a, b, c) for every block of C.
template <typename In, typename Out, typename Block>
void for_each_product_block(const Product& product, const Block& block) {
  const In* a = product.a.data<In>();
  const In* b = product.b.data<In>();
  Out* c = product.c.data<Out>();
  const std::int64_t ld_a = product.a.size(1);
  const std::int64_t ld_b = product.b.size(1);
  const std::int64_t ld_c = product.c.size(1);
  const cpu::Partition rows(product.c.size(0), kBlockRows);
  const cpu::Partition cols(product.c.size(1), kBlockCols);
  // Neighbours in the row direction share a block of B, by far the larger operand in the head.
  cpu::for_each_block(rows.count() * cols.count(), [&](std::int64_t i) {
    const std::int64_t row = i % rows.count();
    const std::int64_t col = i / rows.count();
    block(rows.size(row), cols.size(col), row_of(product.op_a, a, ld_a, rows.begin(row)),
          col_of(product.op_b, b, ld_b, cols.begin(col)),
          c + rows.begin(row) * ld_c + cols.begin(col));
  });
}

template <typename T>
void multiply_native(const Product& product) {
  const T beta = product.accumulate ? T{1} : T{0};
  const std::int64_t ld_a = std::max<std::int64_t>(product.a.size(1), 1);
  const std::int64_t ld_b = std::max<std::int64_t>(product.b.size(1), 1);
  for_each_product_block<T, T>(product,
                               [&](std::int64_t m, std::int64_t n, const T* a, const T* b, T* c) {
                                 cpu::gemm(product.op_a, product.op_b, m, n, product.inner, T{1}, a,
                                           ld_a, b, ld_b, beta, c, product.c.size(1));
                               });
}

void multiply_bf16(const Product& product) {
  if (product.inner == 0 || product.c.numel() == 0) {
    if (!product.accumulate) fill(product.c, 0);
    return;
  }
  Tensor rounded_a;
  Tensor rounded_b;
  Product rounded = product;
  if (!cpu::has_bf16_gemm()) {
    rounded.a = rounded_a = cpu::to_bf16_values(product.a);
    rounded.b = rounded_b = cpu::to_bf16_values(product.b);
    multiply_native<float>(rounded);
    return;
  }
  if (product.a.dtype() == DType::kF32) rounded.a = rounded_a = cpu::to_bf16(product.a);
  if (product.b.dtype() == DType::kF32) rounded.b = rounded_b = cpu::to_bf16(product.b);
  for_each_product_block<BFloat16, float>(
      rounded, [&](std::int64_t m, std::int64_t n, const BFloat16* a, const BFloat16* b, float* c) {
        cpu::bf16_gemm(rounded.op_a, rounded.op_b, m, n, rounded.inner, a, rounded.a.size(1), b,
                       rounded.b.size(1), rounded.accumulate, c, rounded.c.size(1));
      });
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
  TTT_CHECK(a == c && b == c, "operands {} and {} of a product to {}", name_of(a), name_of(b),
            name_of(c));
  visit_real(c, [&](auto scalar) { multiply_native<decltype(scalar)>(product); });
}

}  // namespace

void linear_forward(TensorView x, TensorView w, TensorView y, Precision precision,
                    Stream& /*stream*/) {
  TTT_CHECK(x.shape().rank() == 2 && w.shape().rank() == 2, "x {} and w {} must be matrices",
            x.shape().str(), w.shape().str());
  expect_shape("w", w, {w.size(0), x.size(1)});
  expect_shape("y", y, {x.size(0), w.size(0)});
  multiply({Op::kNone, x, Op::kTranspose, w, y, x.size(1), false}, precision);
}

void linear_backward_input(TensorView d_y, TensorView w, TensorView d_x, Accumulate accumulate,
                           Precision precision, Stream& /*stream*/) {
  TTT_CHECK(d_y.shape().rank() == 2 && w.shape().rank() == 2, "d_y {} and w {} must be matrices",
            d_y.shape().str(), w.shape().str());
  expect_shape("w", w, {d_y.size(1), w.size(1)});
  expect_shape("d_x", d_x, {d_y.size(0), w.size(1)});
  multiply({Op::kNone, d_y, Op::kNone, w, d_x, d_y.size(1), accumulate == Accumulate::kYes},
           precision);
}

void linear_backward_weight(TensorView d_y, TensorView x, TensorView d_w, Precision precision,
                            Stream& /*stream*/) {
  TTT_CHECK(d_y.shape().rank() == 2 && x.shape().rank() == 2, "d_y {} and x {} must be matrices",
            d_y.shape().str(), x.shape().str());
  expect_shape("x", x, {d_y.size(0), x.size(1)});
  expect_shape("d_w", d_w, {d_y.size(1), x.size(1)});
  multiply({Op::kTranspose, d_y, Op::kNone, x, d_w, d_y.size(0), true}, precision);
}

}  // namespace ttt::kernels
