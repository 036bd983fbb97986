// Which path of the inner loop a device takes, by what it gives a block. Compiled with the emulator included first.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cuda/ttt_paths.h"
#include "kernels/linear_attention.h"
#include "tests/kernels/ttt_call.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"
#include "tests/support/tensors.h"

namespace ttt::test {
namespace {

using kernels::cuda::block_limits_of;
using kernels::cuda::BlockLimits;
using testing::HasSubstr;

// A device whose blocks have this, while it lives.
class EmulatedLimits {
 public:
  explicit EmulatedLimits(const BlockLimits& limits) : before_(simt::device_limits()) {
    simt::device_limits() = limits;
  }
  EmulatedLimits(const EmulatedLimits&) = delete;
  EmulatedLimits& operator=(const EmulatedLimits&) = delete;
  ~EmulatedLimits() { simt::device_limits() = before_; }

 private:
  BlockLimits before_;
};

// "" where the fused kernels serve.
std::string missing(const BlockLimits& limits, InnerModel model, std::int64_t features,
                    std::int64_t width = 0, TttOptions options = {}, DType dtype = DType::kBF16) {
  options.model = model;
  const std::int64_t published = model == InnerModel::kMlp ? 4 * features : features;
  const Tensor q({1, 1, 1, features}, dtype);
  const Tensor w1({1, 1, features, width == 0 ? published : width}, DType::kF32);
  const char* reason =
      kernels::cuda::why_generic(limits, {q, q, q, {}, {}, {}, {}}, options, {w1, {}, {}, {}});
  return reason == nullptr ? "" : reason;
}

TEST(CudaTttPath, IsFusedWhereTheDeviceGivesABlockEnough) {
  for (const auto& [capability, fused] :
       {std::pair{80, "linear64 linear96"}, std::pair{86, "linear64"}, std::pair{89, "linear64"},
        std::pair{90, "linear64 linear96 mlp64 mlp96"},
        std::pair{103, "linear64 linear96 mlp64 mlp96"}, std::pair{120, "linear64"}}) {
    std::string served;
    for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
      for (const std::int64_t features : {64, 96}) {
        if (!missing(block_limits_of(capability), model, features).empty()) continue;
        served += (served.empty() ? "" : " ") +
                  std::string(model == InnerModel::kMlp ? "mlp" : "linear") +
                  std::to_string(features);
      }
    }
    EXPECT_EQ(served, fused) << capability;
  }
}

TEST(CudaTttPath, NamesWhatIsMissing) {
  const BlockLimits hopper = block_limits_of(90);
  const auto expect = [&](const std::string& reason, const char* text) {
    EXPECT_THAT(reason, HasSubstr(text));
  };
  expect(missing({hopper.shared_bytes, false}, InnerModel::kMlp, 64), "clusters of blocks");
  expect(missing({100 << 10, true}, InnerModel::kMlp, 64), "more shared memory");
  expect(missing(hopper, InnerModel::kLinear, 32), "head dim of 64 or 96");
  expect(missing(hopper, InnerModel::kMlp, 64, 128), "hidden width of four");
  expect(missing(hopper, InnerModel::kLinear, 64, 0, {}, DType::kF32), "bf16");
  TttOptions options;
  options.mini_batch_size = 8;
  expect(missing(hopper, InnerModel::kLinear, 64, 0, options), "mini-batches of 16");
  options = {};
  options.bias = false;
  expect(missing(hopper, InnerModel::kLinear, 64, 0, options), "inner norm and biases");
  options = {};
  options.inner_norm = false;
  expect(missing(hopper, InnerModel::kLinear, 64, 0, options), "inner norm and biases");
}

// 99 KiB and clusters, as compute capability 12.0 has them. The emulator stops a launch that asks for more.
TEST(CudaTttPath, BlocksOf99KibTakeTheGenericKernelsAndSaySoOnce) {
  const EmulatedLimits limits(block_limits_of(120));
  testing::internal::CaptureStderr();
  for (const auto& [model, features] :
       {std::pair{InnerModel::kLinear, 96}, std::pair{InnerModel::kMlp, 64}}) {
    const TttCase c = make_case(model, 17, 16, features, 4 * features);
    const TttTensors<double> x = rounded_to<BFloat16>(make_tensors(c));
    const TttLoss loss = make_loss(c);
    const TttFunctions generic{&kernels::cuda::generic_forward, &kernels::cuda::generic_backward};
    const auto chosen = call_backward<BFloat16>(c, x, loss);
    const auto expected = call_backward<BFloat16>(c, x, loss, generic);
    EXPECT_EQ(chosen.q, expected.q);
    EXPECT_EQ(chosen.initial.w1, expected.initial.w1);
  }
  const std::string said = testing::internal::GetCapturedStderr();
  const auto first = said.find(
      "block_shared_kib=99 clusters=yes: much slower than the fused kernels, which need more "
      "shared memory");
  EXPECT_NE(first, std::string::npos) << said;
  EXPECT_EQ(said.find("ttt_kernel=generic"), said.rfind("ttt_kernel=generic")) << said;
}

TEST(CudaTttPath, BlocksOf99KibHoldTheFusedKernelsOfTttLinear64) {
  const EmulatedLimits limits(block_limits_of(120));
  const TttCase c = make_case(InnerModel::kLinear, 17, 16, 64, 0);
  const TttTensors<double> x = rounded_to<BFloat16>(make_tensors(c));
  kernels::TttSaved saved;
  call_forward<BFloat16>(c, x, &saved);
  EXPECT_FALSE(saved.step_gradients.empty()) << "only the fused kernels keep them";
  call_backward<BFloat16>(c, x, make_loss(c));
}

using Values = std::vector<double>;

// What attention of either kind is given and gives, one row of 70 tokens and one head.
struct AttentionTensors {
  Shape shape;
  Tensor q, k, v, d_out, out, d_q, d_k, d_v;

  AttentionTensors(std::int64_t dim, DType dtype) : shape{1, 70, 1, dim} {
    const auto input = [&](const char* name) {
      return tensor_of(random_values(name, shape.numel()), shape, dtype);
    };
    q = input("q");
    k = input("k");
    v = input("v");
    d_out = input("d_out");
    for (Tensor* result : {&out, &d_q, &d_k, &d_v}) *result = Tensor(shape, dtype);
  }
  [[nodiscard]] std::vector<Values> results() const {
    return {values_of(out), values_of(d_q), values_of(d_k), values_of(d_v)};
  }
};

std::vector<Values> attention_gradients(std::int64_t dim, DType dtype) {
  Stream queue = stream();
  const AttentionTensors t(dim, dtype);
  const Tensor lse({1, 1, 70}, DType::kF32);
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  kernels::attention_forward(t.q, t.k, t.v, t.out, lse, scale, queue);
  kernels::attention_backward(t.q, t.k, t.v, t.out, lse, t.d_out, t.d_q, t.d_k, t.d_v, scale,
                              queue);
  queue.synchronize();
  return t.results();
}

std::vector<Values> linear_attention_gradients(std::int64_t dim, DType dtype) {
  Stream queue = stream();
  const AttentionTensors t(dim, dtype);
  kernels::linear_attention_forward(t.q, t.k, t.v, t.out, {}, {}, {}, queue);
  kernels::linear_attention_backward(t.q, t.k, t.v, {}, t.d_out, {}, t.d_q, t.d_k, t.d_v, {}, {},
                                     queue);
  queue.synchronize();
  return t.results();
}

// The emulator stops a launch that asks for more, so what comes back was computed within the limit.
TEST(CudaAttentionTiles, FitTheBlocksOfTheDevice) {
  for (const auto& [gradients, dim] :
       {std::pair{&attention_gradients, 128}, std::pair{&linear_attention_gradients, 96}}) {
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      const std::vector<Values> expected = gradients(dim, dtype);
      const EmulatedLimits limits(block_limits_of(120));
      const std::vector<Values> fitted = gradients(dim, dtype);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        // Other tiles sum in another order; the tensor cores' path rounds probabilities to bf16 besides.
        expect_close(std::to_string(i), fitted[i], expected[i],
                     dtype == DType::kBF16 ? 2e-2 : 1e-5);
      }
    }
  }
}

TEST(CudaAttentionTiles, HeadsThatDoNotFitAreRefused) {
  const EmulatedLimits limits(block_limits_of(120));
  EXPECT_THAT(error_of([] { attention_gradients(1024, DType::kF32); }), HasSubstr("more heads"));
  EXPECT_THAT(error_of([] { linear_attention_gradients(512, DType::kF32); }),
              HasSubstr("more heads"));
}

// Else the tests above could not fail.
TEST(CudaTttPathDeathTest, ALaunchBeyondTheLimitsStops) {
  const EmulatedLimits limits({99 << 10, false});
  EXPECT_DEATH(simt::run({{1, 1, 1}, {32, 1, 1}, 100 << 10}, [] {}), "at most 99 KiB");
  EXPECT_DEATH(simt::run({{2, 1, 1}, {32, 1, 1}, 0, 2}, [] {}), "no clusters");
}

}  // namespace
}  // namespace ttt::test
