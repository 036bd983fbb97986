// That the kernels of kernels/cuda/shared_qk.cu race nowhere and give the same bits again; tests/kernels/shared_qk_test.cpp
// compares them with the reference.

#include "kernels/shared_qk.h"

#include <gtest/gtest.h>

#include "kernels/reference/shared_qk.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"

namespace ttt::kernels {
namespace {

using test::random_values;
using test::tensor_of;
using Values = std::vector<double>;

// Two tiles of channels, two runs of tokens, the last one short.
constexpr reference::CausalConvSizes kSize{2, 37, 3 * 48, 4};
constexpr RopeOptions kRope{.period = 16};

struct Results {
  Values q, k, d_p, d_w_q, d_w_k, d_bias_k;
};

Results run() {
  Stream stream = test::stream();
  const auto of = [](const char* name, const Shape& shape) {
    return tensor_of<float>(shape, random_values(name, shape.numel()));
  };
  const Shape shape{kSize.batch, kSize.tokens, 3, 48}, w_shape{kSize.channels, 1, kSize.window};
  const Tensor p = of("p", shape), w_q = of("w_q", w_shape), w_k = of("w_k", w_shape);
  const Tensor bias = of("bias", {kSize.channels}), d_q = of("d_q", shape), d_k = of("d_k", shape);
  const Tensor q(shape, DType::kF32), k(shape, DType::kF32), d_p(shape, DType::kF32);
  const Tensor history({kSize.batch, kSize.window - 1, kSize.channels}, DType::kF32);
  const Tensor d_w_q = Tensor::zeros(w_shape, DType::kF32),
               d_w_k = Tensor::zeros(w_shape, DType::kF32);
  const Tensor d_bias_q = Tensor::zeros(bias.shape(), DType::kF32);
  const Tensor d_bias_k = Tensor::zeros(bias.shape(), DType::kF32);
  shared_qk_forward(p, w_q, bias, w_k, bias, {}, q, k, history, kRope, stream);
  shared_qk_backward(p, w_q, w_k, d_q, d_k, d_p, d_w_q, d_bias_q, d_w_k, d_bias_k, kRope, stream);
  stream.synchronize();
  const auto values = [](const Tensor& tensor) { return test::values_of<float>(tensor); };
  return {values(q), values(k), values(d_p), values(d_w_q), values(d_w_k), values(d_bias_k)};
}

TEST(CudaRaceSharedQk, ForwardAndBackward) {
  const Results results = run();
  const auto of = [](const char* name, std::int64_t count) {
    Values values = random_values(name, count);
    for (double& value : values) value = static_cast<float>(value);
    return values;
  };
  const std::int64_t count = kSize.batch * kSize.tokens * kSize.channels;
  const std::int64_t weights = kSize.channels * kSize.window;
  const Values p = of("p", count), w_k = of("w_k", weights);
  Values k(p.size()), d_p(p.size()), d_w_k(w_k.size(), 0.0);
  Values d_bias_k(static_cast<std::size_t>(kSize.channels), 0.0);
  reference::rotated_conv_forward<double>(kSize, 48, kRope, p, w_k, of("bias", kSize.channels), {},
                                          k, {});
  test::expect_close("k", results.k, k, 3e-6);  // tests/kernels/shared_qk_test.cpp
  reference::rotated_conv_backward<double>(kSize, 48, kRope, p, w_k, of("d_k", count),
                                           Values(p.size(), 0.0), d_p, d_w_k, d_bias_k);
  test::expect_close("d_w_k", results.d_w_k, d_w_k, 3e-6);
  test::expect_close("d_bias_k", results.d_bias_k, d_bias_k, 3e-6);
}

TEST(CudaSharedQk, RerunIsBitwiseEqual) {
  const Results first = run(), again = run();
  EXPECT_EQ(first.q, again.q);
  EXPECT_EQ(first.k, again.k);
  EXPECT_EQ(first.d_p, again.d_p);
  EXPECT_EQ(first.d_w_q, again.d_w_q);
  EXPECT_EQ(first.d_w_k, again.d_w_k);
  EXPECT_EQ(first.d_bias_k, again.d_bias_k);
}

}  // namespace
}  // namespace ttt::kernels
