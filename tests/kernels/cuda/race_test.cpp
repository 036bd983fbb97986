// Every kernel that has threads meet, beside the fused ones, whose tests are their own: small enough for ThreadSanitizer
// with a thread a thread (cuda_race_tests) and for compute-sanitizer on a device. What they compute is compared with the
// reference elsewhere; here all of it must only be there.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/causal_conv.h"
#include "kernels/embedding.h"
#include "kernels/head_cross_entropy.h"
#include "kernels/inner_learning_rate.h"
#include "kernels/linear_attention.h"
#include "kernels/non_finite.h"
#include "kernels/norm.h"
#include "kernels/row_losses.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"
#include "tests/support/tensors.h"

namespace ttt::kernels {
namespace {

constexpr double kEpsilon = 1e-6;

Tensor input(const char* name, const Shape& shape, DType dtype) {
  return test::tensor_of(test::random_values(name, shape.numel()), shape, dtype);
}

Tensor ids_below(std::int64_t limit, std::int64_t count) {
  Tensor ids({count}, DType::kI64);
  for (std::int64_t i = 0; i < count; ++i) ids.data<std::int64_t>()[i] = i * i % limit;
  return ids;
}

void expect_finite(std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors) {
    EXPECT_TRUE(
        std::ranges::all_of(test::values_of(tensor), [](double x) { return std::isfinite(x); }));
  }
}

void run_attention(DType dtype, std::int64_t tokens, std::int64_t dim) {
  Stream stream = test::stream();
  const Shape of_q{1, tokens, 2, dim}, of_k{1, tokens, 1, dim};
  const Tensor q = input("q", of_q, dtype), k = input("k", of_k, dtype),
               v = input("v", of_k, dtype);
  const Tensor d_out = input("d_out", of_q, dtype);
  const Tensor out = test::unset(of_q, dtype), d_q = test::unset(of_q, dtype);
  const Tensor d_k = test::unset(of_k, dtype), d_v = test::unset(of_k, dtype);
  const Tensor lse = test::unset({1, 2, tokens}, DType::kF32);
  attention_forward(q, k, v, out, lse, 0.125, stream);
  attention_backward(q, k, v, out, lse, d_out, d_q, d_k, d_v, 0.125, stream);
  stream.synchronize();
  expect_finite({out, lse, d_q, d_k, d_v});
}

// Several tiles, the last ones short.
TEST(CudaRaceAttention, OnTensorCores) {
  run_attention(DType::kBF16, 133, 64);
  run_attention(DType::kBF16, 69, 96);
}
TEST(CudaRaceAttention, InFp32) { run_attention(DType::kF32, 69, 5); }

TEST(CudaRaceLinearAttention, ForwardAndBackward) {
  Stream stream = test::stream();
  const Shape shape{1, 67, 1, 5};
  const LinearAttentionOptions options{FeatureMap::kEluPlusOne, true};
  const Tensor q = input("q", shape, DType::kF32), k = input("k", shape, DType::kF32);
  const Tensor v = input("v", shape, DType::kF32), d_out = input("d_out", shape, DType::kF32);
  const Tensor out = test::unset(shape, DType::kF32), d_q = test::unset(shape, DType::kF32);
  const Tensor d_k = test::unset(shape, DType::kF32), d_v = test::unset(shape, DType::kF32);
  linear_attention_forward(q, k, v, out, {}, {}, options, stream);
  linear_attention_backward(q, k, v, {}, d_out, {}, d_q, d_k, d_v, {}, options, stream);
  stream.synchronize();
  expect_finite({out, d_q, d_k, d_v});
}

// The wider rows pass through a block's panel in two parts.
TEST(CudaRaceNorm, ForwardAndBackward) {
  Stream stream = test::stream();
  for (const std::int64_t channels : {300, 4100}) {
    const std::int64_t rows = 11;  // several a block
    const Shape shape{rows, channels};
    const auto fp32 = [&](const char* name) { return input(name, {channels}, DType::kF32); };
    const Tensor x = input("x", shape, DType::kF32), w = fp32("w"), b = fp32("b");
    const Tensor gate = input("gate", shape, DType::kF32), d_y = input("d_y", shape, DType::kF32);
    const Tensor y = test::unset(shape, DType::kF32), d_x = test::unset(shape, DType::kF32);
    const Tensor d_gate = test::unset(shape, DType::kF32);
    const Tensor mean = test::unset({rows}, DType::kF32), rstd = test::unset({rows}, DType::kF32);
    const Tensor d_w = fp32("d_w"), d_b = fp32("d_b");
    rms_norm_forward(x, w, y, rstd, kEpsilon, stream);
    rms_norm_backward(x, w, rstd, d_y, {}, d_x, d_w, stream);
    layer_norm_forward(x, w, b, gate, y, mean, rstd, kEpsilon, stream);
    layer_norm_backward(x, w, b, gate, mean, rstd, d_y, y, d_x, d_gate, d_w, d_b, stream);
    stream.synchronize();
    expect_finite({y, d_x, d_gate, mean, rstd, d_w, d_b});
  }
}

// More tokens than a warp of the sort takes.
TEST(CudaRaceEmbedding, ForwardAndBackward) {
  Stream stream = test::stream();
  const Tensor ids = ids_below(37, 600);
  const Tensor table = input("table", {37, 8}, DType::kF32);
  const Tensor y = test::unset({600, 8}, DType::kF32);
  embedding_forward(ids, table, y, stream);
  embedding_backward(ids, y, table, stream);
  stream.synchronize();
  expect_finite({y, table});
}

// Several warps a row, whose packets begin anywhere.
TEST(CudaRaceHeadCrossEntropy, ForwardAndBackward) {
  Stream stream = test::stream();
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor x = input("x", {3, 4}, dtype), w = input("w", {2501, 4}, DType::kF32);
    const Tensor weight = input("weight", {3}, DType::kF64);
    const Tensor nll = test::unset({3}, DType::kF64), d_x = test::unset({3, 4}, dtype);
    const Tensor d_w = input("d_w", {2501, 4}, DType::kF32);
    head_cross_entropy(x, w, ids_below(2501, 3), weight, nll, d_x, d_w,
                       dtype == DType::kBF16 ? Precision::kBF16 : Precision::kNative, stream);
    stream.synchronize();
    expect_finite({nll, d_x, d_w});
  }
}

// The wider window reads weights from memory too.
TEST(CudaRaceCausalConv, ForwardAndBackward) {
  Stream stream = test::stream();
  for (const std::int64_t window : {4, 6}) {
    const Shape shape{1, 300, 20};
    const Tensor x = input("x", shape, DType::kF32), d_y = input("d_y", shape, DType::kF32);
    const Tensor w = input("w", {20, 1, window}, DType::kF32);
    const Tensor bias = input("bias", {20}, DType::kF32),
                 d_bias = input("d_bias", {20}, DType::kF32);
    const Tensor d_w = input("d_w", {20, 1, window}, DType::kF32);
    const Tensor y = test::unset(shape, DType::kF32), d_x = test::unset(shape, DType::kF32);
    causal_conv_forward(x, w, bias, {}, {}, y, {}, stream);
    causal_conv_backward(x, w, d_y, {}, d_x, d_w, d_bias, stream);
    stream.synchronize();
    expect_finite({y, d_x, d_w, d_bias});
  }
}

TEST(CudaRaceSums, OfStepsAndLosses) {
  Stream stream = test::stream();
  const std::int64_t count = kSquaresBlock + 5;
  const Tensor gradients = input("gradients", {count}, DType::kF32);
  const Tensor squares = test::unset({1}, DType::kF64), place = test::unset({1}, DType::kF64);
  const Tensor places = test::unset({2}, DType::kF64), losses = test::unset({3}, DType::kF64);
  const Tensor decision = Tensor::zeros({kDecisionSize}, DType::kF64);
  row_losses(input("weight", {3, 70}, DType::kF64), input("nll", {3, 70}, DType::kF64), losses,
             stream);
  sum_of_squares(gradients, squares, stream);
  find_non_finite(gradients, 0, places, stream);
  smallest(places, place, stream);
  decide_update(squares, losses, decision, {}, {}, stream);
  const Tensor rate = input("rate", {70, 3}, DType::kF32),
               d_rate = input("d", {70, 3}, DType::kF32);
  const Tensor d_logits = test::unset({70, 3}, DType::kF32), d_bias = input("b", {3}, DType::kF32);
  inner_learning_rate_backward(rate, d_rate, d_logits, d_bias, 1.0, stream);
  stream.synchronize();
  expect_finite({squares, losses, decision, d_logits, d_bias});
  EXPECT_EQ(test::values_of(place).front(), INFINITY);
}

}  // namespace
}  // namespace ttt::kernels
