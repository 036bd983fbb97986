// The fused TTT-MLP kernels against the definition in double precision, both on the same bf16 inputs.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/ttt_paths.h"
#include "kernels/reference/ttt.h"
#include "tests/kernels/ttt_cases.h"
#include "tests/support/kernel_check.h"
#include "tests/support/tensors.h"

namespace ttt::test {
namespace {

using kernels::TttInputs;
using kernels::TttSaved;
using kernels::TttState;
using kernels::cuda::MlpShape;
namespace ref = kernels::reference;

TttCase mlp_case(std::int64_t features, std::int64_t tokens, std::int64_t batch = 2,
                 std::int64_t heads = 2) {
  TttCase c = make_case(InnerModel::kMlp, tokens, 16, features, 4 * features);
  c.sizes.batch = batch;
  c.sizes.heads = heads;
  return c;
}

void round_values(std::vector<double>& values, DType dtype) {
  const auto count = static_cast<std::int64_t>(values.size());
  if (count > 0) values = values_of(tensor_of(values, {count}, dtype));
}

/// Inputs as both sides see them; the rows of W2 and b2 have means of the size of their deviations.
TttTensors<double> mlp_tensors(const TttCase& c) {
  TttTensors<double> x = make_tensors(c);
  for (std::size_t i = 0; i < x.initial.w2.size(); ++i) {
    x.initial.w2[i] +=
        0.05 * std::sin(static_cast<double>(static_cast<std::int64_t>(i) / c.sizes.features));
  }
  for (double& value : x.initial.b2) value += 0.4;
  for (auto& [name, values] : members(x)) {
    round_values(*values, name.size() == 1 ? DType::kBF16 : DType::kF32);
  }
  return x;
}

TttLoss mlp_loss(const TttCase& c) {
  TttLoss loss = make_loss(c);
  round_values(loss.d_out, DType::kBF16);
  return loss;
}

/// |actual - expected| <= tolerance |expected|, as vectors.
void expect_norm_close(const std::string& name, const std::vector<double>& actual,
                       const std::vector<double>& expected, double tolerance) {
  ASSERT_EQ(actual.size(), expected.size()) << name;
  double error = 0;
  double norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  const double relative = std::sqrt(error / norm);
  ::testing::Test::RecordProperty(name, std::to_string(relative));
  EXPECT_TRUE(relative <= tolerance) << name << ": relative error " << relative;
}

struct MlpState {
  Tensor w1, b1, w2, b2;
  [[nodiscard]] TttState views() const { return {w1, b1, w2, b2}; }
  [[nodiscard]] std::vector<std::pair<std::string, Tensor>> named() const {
    return {{"w1", w1}, {"b1", b1}, {"w2", w2}, {"b2", b2}};
  }
};

MlpState state_of(const TttCase& c, const TttWeights<double>& weights) {
  const std::int64_t b = c.sizes.batch;
  const std::int64_t h = c.sizes.heads;
  const std::int64_t f = c.sizes.features;
  return {tensor_of(weights.w1, {b, h, f, 4 * f}, DType::kF32),
          tensor_of(weights.b1, {b, h, 1, 4 * f}, DType::kF32),
          tensor_of(weights.w2, {b, h, 4 * f, f}, DType::kF32),
          tensor_of(weights.b2, {b, h, 1, f}, DType::kF32)};
}

MlpState unset_state(const MlpState& like) {
  return {unset(like.w1.shape(), DType::kF32), unset(like.b1.shape(), DType::kF32),
          unset(like.w2.shape(), DType::kF32), unset(like.b2.shape(), DType::kF32)};
}

struct MlpRun {
  TttCase c;
  Tensor q, k, v, token_lr, token_scale, norm_weight, norm_bias;
  MlpState initial, final_state;
  Tensor out;
  TttSaved saved;

  MlpRun(TttCase tested, const TttTensors<double>& x) : c(std::move(tested)) {
    const TttSizes& s = c.sizes;
    const Shape rows{s.batch, s.tokens, s.heads, s.features};
    q = tensor_of(x.q, rows, DType::kBF16);
    k = tensor_of(x.k, rows, DType::kBF16);
    v = tensor_of(x.v, rows, DType::kBF16);
    token_lr = tensor_of(x.token_lr, {s.batch, s.tokens, s.heads}, DType::kF32);
    token_scale = tensor_of(x.token_scale, {16}, DType::kF32);
    norm_weight = tensor_of(x.norm_weight, {s.heads, s.features}, DType::kF32);
    norm_bias = tensor_of(x.norm_bias, {s.heads, s.features}, DType::kF32);
    initial = state_of(c, x.initial);
    final_state = unset_state(initial);
    out = unset(rows, DType::kBF16);
  }

  [[nodiscard]] TttInputs inputs() const {
    return {q, k, v, token_lr, token_scale, norm_weight, norm_bias};
  }
  void forward(MlpShape shape, Stream& stream) {
    kernels::cuda::fused_mlp_forward_as(shape, inputs(), initial.views(), out, final_state.views(),
                                        &saved, stream);
    stream.synchronize();
  }
  [[nodiscard]] std::vector<Tensor> results() const {
    return {out,
            saved.checkpoints,
            saved.step_gradients,
            saved.hidden_step_gradients,
            final_state.w1,
            final_state.b1,
            final_state.w2,
            final_state.b2};
  }
};

/// Gradients, those that are added to starting from `start`.
struct MlpGradients {
  Tensor d_q, d_k, d_v, d_token_lr, d_token_scale, d_norm_weight, d_norm_bias;
  MlpState d_initial;

  MlpGradients(const MlpRun& run, const std::vector<double>& d_out, const TttState& d_final,
               double start, Stream& stream)
      : d_q(unset(run.q.shape(), DType::kBF16)),
        d_k(unset(run.q.shape(), DType::kBF16)),
        d_v(unset(run.q.shape(), DType::kBF16)),
        d_token_lr(unset(run.token_lr.shape(), DType::kF32)),
        d_token_scale(run.token_scale.shape(), DType::kF32),
        d_norm_weight(run.norm_weight.shape(), DType::kF32),
        d_norm_bias(run.norm_bias.shape(), DType::kF32),
        d_initial(unset_state(run.initial)) {
    for (const Tensor& added : {d_token_scale, d_norm_weight, d_norm_bias}) fill(added, start);
    kernels::cuda::fused_mlp_backward(
        run.inputs(), run.initial.views(), run.saved, tensor_of(d_out, run.q.shape(), DType::kBF16),
        d_final, {d_q, d_k, d_v, d_token_lr, d_token_scale, d_norm_weight, d_norm_bias},
        d_initial.views(), stream);
    stream.synchronize();
  }
  [[nodiscard]] std::vector<Tensor> all() const {
    return {d_q,         d_k,          d_v,          d_token_lr,   d_token_scale, d_norm_weight,
            d_norm_bias, d_initial.w1, d_initial.b1, d_initial.w2, d_initial.b2};
  }
};

void expect_same_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(std::memcmp(a[i].view().raw(), b[i].view().raw(),
                          static_cast<std::size_t>(a[i].view().num_bytes())),
              0)
        << "result " << i;
  }
}

// bf16 operands (2^-9 each) in sums of 64 to 256 terms: a few 1e-3 of the norm (out adds a rounding of 2^-9); the
// backward is a chain of some ten such products, and dL/dc has few and cancelling terms.
constexpr double kOutTolerance = 5e-3;
constexpr double kStateTolerance = 1e-2;
constexpr double kGradientTolerance = 1e-2;
constexpr double kScaleTolerance = 2e-2;

/// The final state by its distance from the initial one, which is far smaller than either.
void expect_step_close(const std::string& name, const Tensor& actual, std::vector<double> expected,
                       const std::vector<double>& initial) {
  std::vector<double> step = values_of(actual);
  for (std::size_t i = 0; i < initial.size(); ++i) {
    step[i] -= initial[i];
    expected[i] -= initial[i];
  }
  expect_norm_close(name, step, expected, kStateTolerance);
}

struct Size {
  std::int64_t features, tokens;
};
class CudaTttMlp : public ::testing::TestWithParam<Size> {
 protected:
  static TttCase tested() { return mlp_case(GetParam().features, GetParam().tokens); }
};

TEST_P(CudaTttMlp, ForwardMatchesReferenceAndShapesGiveTheSameBits) {
  const TttCase c = tested();
  const TttTensors<double> x = mlp_tensors(c);
  const TttOutputs<double> expected = ref::ttt_forward(c.sizes, c.options, x);
  Stream stream = test::stream();
  MlpRun cluster(c, x);
  cluster.forward(MlpShape::kCluster, stream);
  expect_norm_close("out", values_of(cluster.out), expected.out, kOutTolerance);
  const MlpState& actual = cluster.final_state;
  const TttWeights<double>& state = expected.final_state;
  expect_step_close("w1", actual.w1, state.w1, x.initial.w1);
  expect_step_close("b1", actual.b1, state.b1, x.initial.b1);
  expect_step_close("w2", actual.w2, state.w2, x.initial.w2);
  expect_step_close("b2", actual.b2, state.b2, x.initial.b2);
  if (GetParam().features != 64) return;  // of one block head dim 64 alone
  MlpRun one_block(c, x);
  one_block.forward(MlpShape::kOneBlock, stream);
  expect_same_bits(one_block.results(), cluster.results());
}

/// An empty loss.d_final stands for none.
void expect_backward_matches(const TttCase& c, const TttTensors<double>& x, const TttLoss& loss) {
  const bool has_d_final = !loss.d_final.w1.empty();
  const MlpState d_final = has_d_final ? state_of(c, loss.d_final) : MlpState{};
  const TttTensors<double> expected =
      ref::ttt_backward(c.sizes, c.options, x, loss.d_out, loss.d_final);
  Stream stream = test::stream();
  MlpRun run(c, x);
  run.forward(MlpShape::kCluster, stream);
  const MlpGradients d(run, loss.d_out, d_final.views(), 0, stream);
  expect_norm_close("d_q", values_of(d.d_q), expected.q, kGradientTolerance);
  expect_norm_close("d_k", values_of(d.d_k), expected.k, kGradientTolerance);
  expect_norm_close("d_v", values_of(d.d_v), expected.v, kGradientTolerance);
  expect_norm_close("d_lr", values_of(d.d_token_lr), expected.token_lr, kGradientTolerance);
  expect_norm_close("d_scale", values_of(d.d_token_scale), expected.token_scale, kScaleTolerance);
  expect_norm_close("d_weight", values_of(d.d_norm_weight), expected.norm_weight,
                    kGradientTolerance);
  expect_norm_close("d_bias", values_of(d.d_norm_bias), expected.norm_bias, kGradientTolerance);
  expect_norm_close("d_w1", values_of(d.d_initial.w1), expected.initial.w1, kGradientTolerance);
  expect_norm_close("d_b1", values_of(d.d_initial.b1), expected.initial.b1, kGradientTolerance);
  expect_norm_close("d_w2", values_of(d.d_initial.w2), expected.initial.w2, kGradientTolerance);
  expect_norm_close("d_b2", values_of(d.d_initial.b2), expected.initial.b2, kGradientTolerance);
}

TEST_P(CudaTttMlp, BackwardMatchesReference) {
  const TttCase c = tested();
  expect_backward_matches(c, mlp_tensors(c), mlp_loss(c));
}

TEST_P(CudaTttMlp, BackwardWithoutFinalGradientMatchesReference) {
  const TttCase c = tested();
  TttLoss loss = mlp_loss(c);
  loss.d_final = {};
  expect_backward_matches(c, mlp_tensors(c), loss);
}

// Steps so large that what goes through those of W1 and b1 is not lost beside the rest.
TEST(CudaTttMlpSteps, BackwardThroughLargeStepsMatchesReference) {
  const TttCase c = mlp_case(64, 37, 1, 2);
  TttTensors<double> x = mlp_tensors(c);
  TttLoss loss = mlp_loss(c);
  for (double& value : x.token_lr) value *= 8;
  for (double& value : loss.d_final.b1) value *= 16;
  expect_backward_matches(c, x, loss);
}

// A gradient of the final state with means of its own over features, which a model's last segment has from no loss of
// ours, but any caller may have.
TEST(CudaTttMlpSteps, BackwardFromAFinalGradientWithMeansMatchesReference) {
  const TttCase c = mlp_case(64, 21, 1, 2);
  TttLoss loss = mlp_loss(c);
  for (double& value : loss.d_final.b2) value += 2;
  for (std::size_t i = 0; i < loss.d_final.w2.size(); ++i) {
    loss.d_final.w2[i] += 0.1 * std::sin(static_cast<double>(i / 64));
  }
  expect_backward_matches(c, mlp_tensors(c), loss);
}

INSTANTIATE_TEST_SUITE_P(CudaSizes, CudaTttMlp,
                         ::testing::Values(Size{64, 1}, Size{64, 5}, Size{64, 16}, Size{64, 37},
                                           Size{96, 1}, Size{96, 37}),
                         [](const auto& size) {
                           return "F" + std::to_string(size.param.features) + "T" +
                                  std::to_string(size.param.tokens);
                         });

TEST(CudaTttMlpBits, RerunIsBitwiseEqual) {
  const TttCase c = mlp_case(64, 37, 1, 2);
  const TttTensors<double> x = mlp_tensors(c);
  const TttLoss loss = mlp_loss(c);
  const MlpState d_final = state_of(c, loss.d_final);
  Stream stream = test::stream();
  MlpRun first(c, x), second(c, x);
  first.forward(MlpShape::kCluster, stream);
  second.forward(MlpShape::kCluster, stream);
  expect_same_bits(first.results(), second.results());
  const MlpGradients d_first(first, loss.d_out, d_final.views(), 0, stream);
  const MlpGradients d_second(second, loss.d_out, d_final.views(), 0, stream);
  expect_same_bits(d_first.all(), d_second.all());
}

TEST(CudaTttMlpArguments, FinalStateMayAliasInitialOrBeEmpty) {
  const TttCase c = mlp_case(64, 20, 2, 1);
  const TttTensors<double> x = mlp_tensors(c);
  Stream stream = test::stream();
  for (const MlpShape shape : {MlpShape::kOneBlock, MlpShape::kCluster}) {
    MlpRun apart(c, x), aliased(c, x), without(c, x);
    apart.forward(shape, stream);
    aliased.final_state = aliased.initial;
    aliased.forward(shape, stream);
    expect_same_bits(aliased.results(), apart.results());
    kernels::cuda::fused_mlp_forward_as(shape, without.inputs(), without.initial.views(),
                                        without.out, {}, nullptr, stream);
    stream.synchronize();
    expect_same_bits({without.out}, {apart.out});
  }
}

TEST(CudaTttMlpArguments, ParameterGradientsAreAddedTo) {
  const TttCase c = mlp_case(64, 17, 2, 1);
  const TttTensors<double> x = mlp_tensors(c);
  const TttLoss loss = mlp_loss(c);
  Stream stream = test::stream();
  MlpRun run(c, x);
  run.forward(MlpShape::kOneBlock, stream);
  const MlpGradients from_zero(run, loss.d_out, {}, 0, stream);
  const MlpGradients from_four(run, loss.d_out, {}, 4, stream);
  const auto expect_four_more = [](const Tensor& more, const Tensor& less) {
    const std::vector<double> a = values_of(more);
    const std::vector<double> b = values_of(less);
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i] + 4, 1e-5);
  };
  expect_four_more(from_four.d_token_scale, from_zero.d_token_scale);
  expect_four_more(from_four.d_norm_weight, from_zero.d_norm_weight);
  expect_four_more(from_four.d_norm_bias, from_zero.d_norm_bias);
}

// For ThreadSanitizer (tests/support/simt/scheduler.h): two full mini-batches, so that buffers come round, and a short one.
TEST(CudaRaceTttMlp, OnePair) {
  const TttCase c = mlp_case(64, 34, 1, 1);
  const TttTensors<double> x = mlp_tensors(c);
  const TttLoss loss = mlp_loss(c);
  const MlpState d_final = state_of(c, loss.d_final);
  Stream stream = test::stream();
  MlpRun cluster(c, x), run(c, x);
  cluster.forward(MlpShape::kCluster, stream);
  run.forward(MlpShape::kOneBlock, stream);
  expect_same_bits(cluster.results(), run.results());
  const MlpGradients d(run, loss.d_out, d_final.views(), 0, stream);
  for (const double value : values_of(d.d_k)) ASSERT_TRUE(std::isfinite(value));
}

// Six warps a slice, of which two own no token.
TEST(CudaRaceTttMlp, OnePairOfHeadDim96) {
  const TttCase c = mlp_case(96, 18, 1, 1);
  const TttTensors<double> x = mlp_tensors(c);
  const TttLoss loss = mlp_loss(c);
  Stream stream = test::stream();
  MlpRun run(c, x);
  run.forward(MlpShape::kCluster, stream);
  const MlpGradients d(run, loss.d_out, {}, 0, stream);
  for (const double value : values_of(d.d_k)) ASSERT_TRUE(std::isfinite(value));
}

}  // namespace
}  // namespace ttt::test
