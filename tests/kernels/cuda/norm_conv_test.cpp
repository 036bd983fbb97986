// That the kernels of kernels/cuda/norm_conv.cu race nowhere and give the same bits again; tests/kernels/norm_conv_test.cpp
// compares them with the reference.

#include "kernels/norm_conv.h"

#include <gtest/gtest.h>

#include "kernels/reference/norm_conv.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"

namespace ttt::kernels {
namespace {

using test::random_values;
using test::tensor_of;
using Values = std::vector<double>;

// Two warps a block, two runs of tokens, the last one short.
constexpr reference::CausalConvSizes kSize{2, 23, 144, 4};
constexpr double kEpsilon = 1e-2;  // large enough that another value would be seen

struct Results {
  Values y, d_x, d_norm_w, d_w, d_bias;
};

Results run() {
  Stream stream = test::stream();
  const auto of = [](const char* name, const Shape& shape) {
    return tensor_of<float>(shape, random_values(name, shape.numel()));
  };
  const Shape shape{kSize.batch, kSize.tokens, kSize.channels}, row{kSize.channels};
  const Shape w_shape{kSize.channels, 1, kSize.window};
  const Tensor x = of("x", shape), d_y = of("d_y", shape), norm_w = of("norm_w", row);
  const Tensor w = of("w", w_shape), bias = of("bias", row);
  const Tensor y(shape, DType::kF32), d_x(shape, DType::kF32);
  const Tensor d_norm_w = Tensor::zeros(row, DType::kF32),
               d_w = Tensor::zeros(w_shape, DType::kF32);
  const Tensor d_bias = Tensor::zeros(row, DType::kF32);
  norm_conv_forward(x, norm_w, w, bias, {}, y, {}, kEpsilon, stream);
  norm_conv_backward(x, norm_w, w, d_y, d_x, d_norm_w, d_w, d_bias, kEpsilon, stream);
  stream.synchronize();
  const auto values = [](const Tensor& tensor) { return test::values_of<float>(tensor); };
  return {values(y), values(d_x), values(d_norm_w), values(d_w), values(d_bias)};
}

TEST(CudaRaceNormConv, ForwardAndBackward) {
  const Results results = run();
  const auto of = [](const char* name, std::int64_t count) {
    Values values = random_values(name, count);
    for (double& value : values) value = static_cast<float>(value);
    return values;
  };
  const std::int64_t count = kSize.batch * kSize.tokens * kSize.channels;
  const Values x = of("x", count), norm_w = of("norm_w", kSize.channels);
  const Values w = of("w", kSize.channels * kSize.window);
  Values y(x.size()), d_x(x.size()), d_w(w.size(), 0.0);
  Values d_norm_w(norm_w.size(), 0.0), d_bias(norm_w.size(), 0.0);
  reference::norm_conv_forward<double>(kSize, kEpsilon, x, norm_w, w, of("bias", kSize.channels),
                                       {}, y, {});
  reference::norm_conv_backward<double>(kSize, kEpsilon, x, norm_w, w, of("d_y", count), d_x,
                                        d_norm_w, d_w, d_bias);
  test::expect_close("y", results.y, y, 5e-6);  // tests/kernels/norm_conv_test.cpp
  test::expect_close("d_x", results.d_x, d_x, 5e-6);
  test::expect_close("d_norm_w", results.d_norm_w, d_norm_w, 5e-6);
  test::expect_close("d_w", results.d_w, d_w, 5e-6);
}

TEST(CudaNormConv, RerunIsBitwiseEqual) {
  const Results first = run(), again = run();
  EXPECT_EQ(first.y, again.y);
  EXPECT_EQ(first.d_x, again.d_x);
  EXPECT_EQ(first.d_norm_w, again.d_norm_w);
  EXPECT_EQ(first.d_w, again.d_w);
  EXPECT_EQ(first.d_bias, again.d_bias);
}

}  // namespace
}  // namespace ttt::kernels
