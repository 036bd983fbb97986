// The fused TTT-Linear kernels against the reference in double on the same bf16 inputs, and what reversing the state
// costs.

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/ttt_paths.h"
#include "tests/kernels/ttt_cases.h"
#include "tests/support/kernel_check.h"
#include "tests/support/tensors.h"

namespace ttt::kernels::cuda {

// kernels/cuda/ttt_linear_backward.cu
void restoring_linear_backward(const TttInputs& inputs, const TttSaved& saved, TensorView d_out,
                               const TttState& d_final, const TttInputGradients& gradients,
                               const TttState& d_initial, TensorView restored, Stream& stream);

}  // namespace ttt::kernels::cuda

namespace ttt::test {
namespace {

using Values = std::vector<double>;

constexpr double kStart = 0.5;  // of the gradients that backward adds to

struct Case {
  std::int64_t batch, tokens, heads, features;
  bool has_d_final;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.tokens << " tokens"; }

std::string name_of_case(const testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  return "B" + std::to_string(c.batch) + "T" + std::to_string(c.tokens) + "H" +
         std::to_string(c.heads) + "F" + std::to_string(c.features) +
         (c.has_d_final ? "Final" : "");
}

// Row means as large as the weights themselves: LayerNorm ignores them, the state's bf16 operands must not.
void shift_rows(Values& w, std::int64_t features) {
  for (std::size_t i = 0; i < w.size(); ++i) {
    w[i] += 0.2 * std::sin(static_cast<double>(i / static_cast<std::size_t>(features)));
  }
}

// Tensors and a loss of the case; q, k, v and d_out as bf16 has them, everything else as fp32 has it.
struct Problem {
  TttCase c;
  TttTensors<double> x;
  TttLoss loss;

  explicit Problem(const Case& sizes) {
    c = make_case(InnerModel::kLinear, sizes.tokens, 16, sizes.features, 0);
    c.sizes.batch = sizes.batch;
    c.sizes.heads = sizes.heads;
    x = make_tensors(c);
    loss = make_loss(c);
    if (!sizes.has_d_final) loss.d_final = {};
    for (auto* weights : {&x.initial, &loss.d_final}) {
      shift_rows(weights->w1, sizes.features);
      for (double& b : weights->b1) b += 0.4;
    }
    for (auto* values : {&x.q, &x.k, &x.v, &loss.d_out}) round_to<BFloat16>(*values);
    for (auto* values : {&x.token_lr, &x.token_scale, &x.norm_weight, &x.norm_bias, &x.initial.w1,
                         &x.initial.b1, &loss.d_final.w1, &loss.d_final.b1}) {
      round_to<float>(*values);
    }
  }

  template <typename T>
  static void round_to(Values& values) {
    if (!values.empty()) {
      values = values_of<T>(tensor_of<T>({static_cast<std::int64_t>(values.size())}, values));
    }
  }
};

struct StateTensors {
  Tensor w1, b1;
  [[nodiscard]] kernels::TttState views() const { return {w1, b1, {}, {}}; }
  [[nodiscard]] TttWeights<double> values() const {
    return {values_of<float>(w1), values_of<float>(b1), {}, {}};
  }
};

// A problem on the device, and its results.
struct DeviceRun {
  const Problem& problem;
  Shape rows, matrices, vectors;
  Tensor q, k, v, token_lr, token_scale, norm_weight, norm_bias, d_out, out;
  StateTensors initial, final_state;
  kernels::TttSaved saved;
  Stream stream = test::stream();

  explicit DeviceRun(const Problem& p) : problem(p) {
    const TttSizes& s = p.c.sizes;
    rows = {s.batch, s.tokens, s.heads, s.features};
    matrices = {s.batch, s.heads, s.features, s.features};
    vectors = {s.batch, s.heads, 1, s.features};
    q = tensor_of<BFloat16>(rows, p.x.q);
    k = tensor_of<BFloat16>(rows, p.x.k);
    v = tensor_of<BFloat16>(rows, p.x.v);
    d_out = tensor_of<BFloat16>(rows, p.loss.d_out);
    token_lr = tensor_of<float>({s.batch, s.tokens, s.heads}, p.x.token_lr);
    token_scale = tensor_of<float>({16}, p.x.token_scale);
    norm_weight = tensor_of<float>({s.heads, s.features}, p.x.norm_weight);
    norm_bias = tensor_of<float>({s.heads, s.features}, p.x.norm_bias);
    initial = state_of(p.x.initial);
  }

  [[nodiscard]] kernels::TttInputs inputs() const {
    return {q, k, v, token_lr, token_scale, norm_weight, norm_bias};
  }
  [[nodiscard]] StateTensors state_of(const TttWeights<double>& weights) const {
    if (weights.w1.empty()) return {};
    return {tensor_of<float>(matrices, weights.w1), tensor_of<float>(vectors, weights.b1)};
  }
  [[nodiscard]] StateTensors unset_state() const {
    return {unset(matrices, DType::kF32), unset(vectors, DType::kF32)};
  }

  TttOutputs<double> forward() {
    out = unset(rows, DType::kBF16);
    final_state = unset_state();
    kernels::ttt_forward(inputs(), problem.c.options, initial.views(), out, final_state.views(),
                         &saved, stream);
    stream.synchronize();
    return {values_of<BFloat16>(out), final_state.values()};
  }

  // Where `restored` is given, the walk's end goes there.
  TttTensors<double> backward(TensorView restored = {}) {
    const auto started = [](const Shape& shape) {
      Tensor tensor(shape, DType::kF32);
      fill(tensor, kStart);
      return tensor;
    };
    const auto added = [](const Tensor& tensor) {
      Values values = values_of<float>(tensor);
      for (double& value : values) value -= kStart;
      return values;
    };
    const Tensor d_q = unset(rows, DType::kBF16), d_k = unset(rows, DType::kBF16),
                 d_v = unset(rows, DType::kBF16), d_token_lr = unset(token_lr.shape(), DType::kF32),
                 d_token_scale = started({16}), d_norm_weight = started(norm_weight.shape()),
                 d_norm_bias = started(norm_bias.shape());
    const StateTensors d_final = state_of(problem.loss.d_final), d_initial = unset_state();
    const kernels::TttInputGradients gradients{d_q,           d_k,           d_v,        d_token_lr,
                                               d_token_scale, d_norm_weight, d_norm_bias};
    if (restored.empty()) {
      kernels::ttt_backward(inputs(), problem.c.options, initial.views(), saved, d_out,
                            d_final.views(), gradients, d_initial.views(), stream);
    } else {
      kernels::cuda::restoring_linear_backward(inputs(), saved, d_out, d_final.views(), gradients,
                                               d_initial.views(), restored, stream);
    }
    stream.synchronize();
    return {values_of<BFloat16>(d_q),     values_of<BFloat16>(d_k), values_of<BFloat16>(d_v),
            values_of<float>(d_token_lr), added(d_token_scale),     added(d_norm_weight),
            added(d_norm_bias),           d_initial.values()};
  }
};

double norm_of(const Values& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

// |actual - expected| / |expected| is at most `tolerance`; negated so that NaN fails.
void expect_norm_close(const std::string& name, const Values& actual, const Values& expected,
                       double tolerance) {
  ASSERT_EQ(actual.size(), expected.size()) << name;
  Values difference(expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) difference[i] = actual[i] - expected[i];
  const double error = norm_of(difference) / norm_of(expected);

  if (!(error <= tolerance)) ADD_FAILURE() << name << " has error " << error;
}

// What the tokens change of a state, or add to its gradient, without the part that goes straight through.
Values change(Values after, const Values& before) {
  for (std::size_t i = 0; i < before.size(); ++i) after[i] -= before[i];
  return after;
}

// One rounding to bf16 is 2^-9 of a value at most, 1e-3 on average, and out or a gradient has a few: its own, of the
// operands W, G, dZ, and of k, q through scores.
void expect_outputs(const Problem& p, TttOutputs<double> actual) {
  const TttOutputs<double> expected = kernels::reference::ttt_forward(p.c.sizes, p.c.options, p.x);
  expect_norm_close("out", actual.out, expected.out, 5e-3);
  const TttWeights<double>& initial = p.x.initial;
  expect_norm_close("step of w1", change(actual.final_state.w1, initial.w1),
                    change(expected.final_state.w1, initial.w1), 4e-3);
  expect_norm_close("step of b1", change(actual.final_state.b1, initial.b1),
                    change(expected.final_state.b1, initial.b1), 4e-3);
}

// Gradients that are sums over tokens average their terms' roundings; those of l and c are differences of large terms.
double gradient_tolerance(const std::string& name) {
  if (name == "token_scale") return 2e-2;
  if (name == "w1" || name == "b1" || name == "norm_weight" || name == "norm_bias") return 3e-3;
  return 1e-2;
}
void expect_gradients(const Problem& p, TttTensors<double> actual) {
  TttTensors<double> expected =
      kernels::reference::ttt_backward(p.c.sizes, p.c.options, p.x, p.loss.d_out, p.loss.d_final);
  for (auto* gradients : {&actual, &expected}) {
    gradients->initial.w1 = change(gradients->initial.w1, p.loss.d_final.w1);
    gradients->initial.b1 = change(gradients->initial.b1, p.loss.d_final.b1);
  }
  const auto actual_members = members(actual);
  const auto expected_members = members(expected);
  for (std::size_t i = 0; i < actual_members.size(); ++i) {
    const std::string& name = actual_members[i].first;
    if (actual_members[i].second->empty()) continue;
    expect_norm_close("d_" + name, *actual_members[i].second, *expected_members[i].second,
                      gradient_tolerance(name));
  }
}

class TttLinearFused : public testing::TestWithParam<Case> {};

TEST_P(TttLinearFused, MatchesReference) {
  const Problem problem(GetParam());
  DeviceRun run(problem);
  expect_outputs(problem, run.forward());
  expect_gradients(problem, run.backward());
}

INSTANTIATE_TEST_SUITE_P(Cuda, TttLinearFused,
                         testing::Values(Case{1, 16, 1, 64, false}, Case{2, 48, 2, 64, true},
                                         Case{2, 37, 3, 64, true}, Case{2, 5, 2, 64, true},
                                         Case{1, 5, 1, 64, false}, Case{1, 17, 2, 64, false},
                                         Case{1, 1, 1, 64, true}, Case{2, 144, 2, 64, false},
                                         Case{1, 16, 1, 96, false}, Case{2, 37, 3, 96, true},
                                         Case{1, 80, 2, 96, false}),
                         name_of_case);

TEST(CudaRaceTttLinear, ShortRun) {
  const Problem problem({1, 33, 1, 64, true});
  DeviceRun run(problem);
  expect_outputs(problem, run.forward());
  expect_gradients(problem, run.backward());
}

TEST(CudaTttLinear, RerunIsBitwiseEqual) {
  for (const std::int64_t features : {64, 96}) {
    const Problem problem({2, 37, 2, features, true});
    DeviceRun first(problem), second(problem);
    TttOutputs<double> y = first.forward(), y_again = second.forward();
    TttTensors<double> d = first.backward(), d_again = second.backward();
    const auto before = members(d), after = members(d_again);
    for (std::size_t i = 0; i < before.size(); ++i) {
      EXPECT_EQ(*before[i].second, *after[i].second) << before[i].first;
    }
    EXPECT_EQ(y.out, y_again.out);
    EXPECT_EQ(y.final_state.w1, y_again.final_state.w1);
  }
}

TEST(CudaTttLinear, FinalStateMayAliasInitialOrBeEmpty) {
  const Problem problem({2, 21, 2, 64, false});
  DeviceRun run(problem);
  const TttOutputs<double> expected = run.forward();
  Tensor out = unset(run.rows, DType::kBF16);
  kernels::ttt_forward(run.inputs(), problem.c.options, run.initial.views(), out, {}, nullptr,
                       run.stream);
  run.stream.synchronize();
  EXPECT_EQ(values_of<BFloat16>(out), expected.out);
  kernels::ttt_forward(run.inputs(), problem.c.options, run.initial.views(), out,
                       run.initial.views(), nullptr, run.stream);
  run.stream.synchronize();
  EXPECT_EQ(values_of<float>(run.initial.w1), expected.final_state.w1);
  EXPECT_EQ(values_of<float>(run.initial.b1), expected.final_state.b1);
}

// The rows of W keep their means and b its own, to rounding: the state is centred and the means are put back.
TEST(CudaTttLinear, MeansOfTheStateGoThrough) {
  const std::int64_t features = 64;
  const Problem problem({1, 48, 2, features, false});
  DeviceRun run(problem);
  const TttOutputs<double> y = run.forward();
  for (const auto& [before, after] : {std::pair{problem.x.initial.w1, y.final_state.w1},
                                      std::pair{problem.x.initial.b1, y.final_state.b1}}) {
    for (std::size_t row = 0; row < before.size(); row += features) {
      double mean_before = 0, mean_after = 0;
      for (std::size_t f = row; f < row + features; ++f) {
        mean_before += before[f] / features;
        mean_after += after[f] / features;
      }
      EXPECT_NEAR(mean_before, mean_after, 1e-4)
          << row;  // bf16 gradients have a mean of their rounding
    }
  }
}

// A state of TttSaved::checkpoints (kernels/cuda/ttt_linear_state.h) as W.
Values matrix_of(const float* checkpoint, std::int64_t features) {
  Values w(static_cast<std::size_t>(features * features));
  for (std::int64_t tile = 0; tile < features / 8; ++tile) {
    for (std::int64_t thread = 0; thread < 2 * features; ++thread) {
      const std::int64_t warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
      for (std::int64_t r = 0; r < 4; ++r) {
        const std::int64_t in = 8 * tile + 2 * t + r % 2, out = 16 * warp + g + 8 * (r / 2);
        w[static_cast<std::size_t>(in * features + out)] =
            checkpoint[(tile * 2 * features + thread) * 4 + r];
      }
    }
  }
  return w;
}

// How far from W_0 without its row means the walk of a backward ends that starts `error_of_end` beside W_T.
double error_of_restored_start(std::int64_t tokens, std::int64_t features, float error_of_end) {
  const Problem problem({1, tokens, 1, features, false});
  DeviceRun run(problem);
  run.forward();
  const std::int64_t last = run.saved.checkpoints.size(2) - 1;
  const std::int64_t size = run.saved.checkpoints.size(3);
  float* const end = run.saved.checkpoints.data<float>() + last * size;
  for (std::int64_t i = 0; i < size; ++i) end[i] += error_of_end;
  const Tensor restored = unset({1, 1, size}, DType::kF32);
  run.backward(restored);
  Values start = problem.x.initial.w1;
  for (auto row = start.begin(); row != start.end(); row += features) {
    double mean = 0;
    for (auto w = row; w != row + features; ++w) mean += *w / static_cast<double>(features);
    for (auto w = row; w != row + features; ++w) *w -= mean;
  }
  return norm_of(change(matrix_of(restored.data<float>(), features), start)) / norm_of(start);
}

// A step's addition and its undoing round by 2^-25 of an element each, in both directions.
TEST(CudaTttLinear, ReversibleWalkRestoresTheStart) {
  for (const std::int64_t features : {64, 96}) {
    EXPECT_LE(error_of_restored_start(277, features, 0), 5e-7);  // 18 mini-batches, the last short
  }
}

TEST(CudaTttLinear, StoredStatesEndTheDrift) {
  EXPECT_LE(error_of_restored_start(129 * 16, 64, 0.01F), 1e-5);
}

}  // namespace
}  // namespace ttt::test
