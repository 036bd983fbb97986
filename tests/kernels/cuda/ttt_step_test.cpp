// The fused decode steps against the reference in double on the same inputs, at every place of a mini-batch.

#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "kernels/cuda/ttt_paths.h"
#include "tests/kernels/ttt_call.h"
#include "tests/support/tensors.h"

namespace ttt::test {
namespace {

namespace ref = kernels::reference;

constexpr std::int64_t kMiniBatch = 16;

TttCase step_case(InnerModel model, std::int64_t features, std::int64_t batch,
                  std::int64_t tokens = kMiniBatch) {
  TttCase c = make_case(model, tokens, kMiniBatch, features, 4 * features);
  c.sizes.batch = batch;
  return c;
}

/// Larger steps than make_tensors': the state moves by as much as it holds, and every token's part shows.
TttTensors<double> step_tensors(const TttCase& c) {
  TttTensors<double> x = make_tensors(c);
  for (double& rate : x.token_lr) rate *= 8;
  return x;
}

/// Token t of every sequence.
template <typename T>
InputTensors<T> token_at(const TttCase& c, const TttTensors<double>& x, std::int64_t t) {
  TttCase one = c;
  one.sizes.tokens = 1;
  TttTensors<double> part = x;
  const auto cut = [&](std::vector<double>& values, std::int64_t width) {
    std::vector<double> result;
    for (std::int64_t b = 0; b < c.sizes.batch; ++b) {
      const auto first = values.begin() + (b * c.sizes.tokens + t) * width;
      result.insert(result.end(), first, first + width);
    }
    values = result;
  };
  for (auto* values : {&part.q, &part.k, &part.v}) cut(*values, c.sizes.heads * c.sizes.features);
  cut(part.token_lr, c.sizes.heads);
  return {one, part};
}

void take_step(const TttCase& c, const kernels::TttInputs& inputs, std::int64_t place,
               const kernels::TttState& state, const kernels::TttState& sums, const Tensor& out,
               Stream& queue) {
  const auto step = c.options.model == InnerModel::kLinear ? &kernels::cuda::fused_linear_step
                                                           : &kernels::cuda::fused_mlp_step;
  step(inputs, c.options, place, state, sums, out, queue);
  queue.synchronize();
}

template <typename T>
void expect_step_matches(const TttCase& c, double out_tolerance, double state_tolerance) {
  using P = ParameterOf<T>;
  const TttTensors<double> x = rounded_to<T>(step_tensors(c));
  const TttOutputs<double> expected = ref::ttt_forward(c.sizes, c.options, x);
  const StateTensors<P> state(c, x.initial);
  const StateTensors<P> sums(c, zeros_like(x.initial));
  const std::int64_t width = c.sizes.heads * c.sizes.features;
  Stream queue = stream();
  for (std::int64_t t = 0; t < kMiniBatch; ++t) {
    const InputTensors<T> inputs = token_at<T>(c, x, t);
    const Tensor out = unset(inputs.q.shape(), kDType<T>);
    const TttWeights<P> before = state.values();
    take_step(c, inputs.views(), t, state.views(), sums.views(), out, queue);
    std::vector<double> expected_row;
    for (std::int64_t b = 0; b < c.sizes.batch; ++b) {
      const auto first = expected.out.begin() + (b * kMiniBatch + t) * width;
      expected_row.insert(expected_row.end(), first, first + width);
    }
    expect_close("out at " + std::to_string(t), elements_of<T>(out), expected_row, out_tolerance);
    if (t + 1 < kMiniBatch) {
      EXPECT_EQ(state.values().w1, before.w1) << t;
      EXPECT_EQ(state.values().b1, before.b1) << t;
      EXPECT_EQ(state.values().w2, before.w2) << t;
      EXPECT_EQ(state.values().b2, before.b2) << t;
    }
  }
  TttOutputs<P> last{{}, state.values()};
  expect_all_close(last, TttOutputs<double>{{}, expected.final_state}, state_tolerance);
  const TttWeights<P> left = sums.values();
  for (const auto* member : {&left.w1, &left.b1, &left.w2, &left.b2}) {
    for (const P sum : *member) ASSERT_EQ(sum, P(0));
  }
}

class CudaTttSteps : public testing::TestWithParam<std::tuple<std::int64_t, std::int64_t>> {
 protected:
  void expect_all_match(InnerModel model) {
    const auto [features, batch] = GetParam();
    const TttCase c = step_case(model, features, batch);
    // Sums of some hundred terms of fp32, divided by the standard deviation.
    expect_step_matches<float>(c, 1e-5, 1e-5);
    // The same arithmetic; out is rounded to bf16 once: 2^-8.
    expect_step_matches<BFloat16>(c, 4e-3, 1e-5);
  }
};

class CudaTttLinearStep : public CudaTttSteps {};
class CudaTttMlpStep : public CudaTttSteps {};

TEST_P(CudaTttLinearStep, EveryPlaceOfAMiniBatchMatchesReference) {
  expect_all_match(InnerModel::kLinear);
}
TEST_P(CudaTttMlpStep, EveryPlaceOfAMiniBatchMatchesReference) {
  expect_all_match(InnerModel::kMlp);
}

const auto kSizes = testing::Combine(testing::Values(64, 96), testing::Values(1, 3));
std::string name_of(const testing::TestParamInfo<std::tuple<std::int64_t, std::int64_t>>& info) {
  return "F" + std::to_string(std::get<0>(info.param)) + "B" +
         std::to_string(std::get<1>(info.param));
}
INSTANTIATE_TEST_SUITE_P(CudaSizes, CudaTttLinearStep, kSizes, name_of);
INSTANTIATE_TEST_SUITE_P(CudaSizes, CudaTttMlpStep, kSizes, name_of);

/// The last tokens of a mini-batch in one call, so that buffers come round, from a state that has taken steps.
void run_last_tokens(InnerModel model, std::int64_t tokens) {
  const TttCase c = step_case(model, 64, 1, tokens);
  const TttTensors<double> x = step_tensors(c);
  const InputTensors<BFloat16> inputs(c, x);
  const StateTensors<float> state(c, x.initial);
  const StateTensors<float> sums(c, x.initial);
  const Tensor out = unset(inputs.q.shape(), DType::kBF16);
  Stream queue = stream();
  take_step(c, inputs.views(), kMiniBatch - tokens, state.views(), sums.views(), out, queue);
}

// For ThreadSanitizer (tests/support/simt/scheduler.h).
TEST(CudaRaceTttLinearStep, LastTokens) { run_last_tokens(InnerModel::kLinear, 3); }
TEST(CudaRaceTttMlpStep, LastTokens) { run_last_tokens(InnerModel::kMlp, 3); }

TEST(CudaTttStepPath, IsFusedWhereTheKernelsServe) {
  const auto is_fused = [](const TttCase& c, bool has_clusters) {
    const InputTensors<float> inputs(c, make_tensors(c));
    const StateTensors<float> state(c, make_tensors(c).initial);
    return kernels::cuda::is_step_fused({1 << 20, has_clusters}, inputs.views(), c.options,
                                        state.views());
  };
  EXPECT_TRUE(is_fused(make_case(InnerModel::kLinear, 1, 5, 64, 0), false));
  EXPECT_TRUE(is_fused(make_case(InnerModel::kMlp, 1, 16, 96, 384), true));
  EXPECT_FALSE(is_fused(make_case(InnerModel::kMlp, 1, 16, 96, 384), false));
  EXPECT_FALSE(is_fused(make_case(InnerModel::kMlp, 1, 16, 64, 128), true));
  EXPECT_FALSE(is_fused(make_case(InnerModel::kLinear, 1, 16, 32, 0), true));
  TttCase plain = make_case(InnerModel::kLinear, 1, 16, 64, 0);
  plain.options.bias = false;
  EXPECT_FALSE(is_fused(plain, true));
}

}  // namespace
}  // namespace ttt::test
