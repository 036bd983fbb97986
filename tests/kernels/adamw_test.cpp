#include "kernels/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/non_finite.h"
#include "kernels/reference/adamw.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"

namespace ttt::kernels {
namespace {

using test::expect_close;
using test::random_values;
using test::tensor_of;
using test::values_of;
using Values = std::vector<double>;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What updates need to know of a gradient of this norm, after so many updates.
Tensor decision_of(double norm, const AdamWStep& step, Stream& stream, double updates = 0) {
  const Tensor decision = tensor_of<double>({kDecisionSize}, {updates, kNan, kNan, kNan, kNan});
  decide_update(tensor_of<double>({1}, {norm * norm}), {}, decision, {}, step, stream);
  return decision;
}

double squares_of(TensorView x, Stream& stream) {
  const Tensor sum = tensor_of<double>({1}, {kNan});
  sum_of_squares(x, sum, stream);
  stream.synchronize();
  return *sum.data<double>();
}

// Three steps on one element, written out with numbers; gradients 2, -1, 0.5 before scaling by 1/2.
TEST(AdamW, FollowsTheRecurrenceByHand) {
  double p = 1.5, m = 0, v = 0;
  Tensor pt = tensor_of<double>({1}, {p}), mt = tensor_of<double>({1}, {m});
  Tensor vt = tensor_of<double>({1}, {v});
  Values p_ref{p}, m_ref{m}, v_ref{v};
  Stream stream;
  const AdamWStep step{
      .learning_rate = 0.1, .epsilon = 1e-3, .weight_decay = 0.2, .clip_norm = 1.5};
  double t = 0;
  const double norm = 3;  // of a larger gradient, of which this is an element
  for (const double gradient : {2.0, -1.0, 0.5}) {
    const double g = gradient / 2;
    m = 0.9 * m + 0.1 * g;
    v = 0.95 * v + 0.05 * g * g;
    t += 1;
    const double m_hat = m / (1 - std::pow(0.9, t));
    const double v_hat = v / (1 - std::pow(0.95, t));
    p = p - 0.1 * m_hat / (std::sqrt(v_hat) + 1e-3) - 0.1 * 0.2 * p;
    adamw(pt, tensor_of<double>({1}, {gradient}), mt, vt, decision_of(norm, step, stream, t - 1),
          {}, step, stream);
    reference::adamw<double>(p_ref, Values{gradient}, m_ref, v_ref, norm * norm, t, step);
    for (const Values& got : {values_of<double>(pt), p_ref}) EXPECT_NEAR(got[0], p, 1e-15);
    for (const Values& got : {values_of<double>(mt), m_ref}) EXPECT_NEAR(got[0], m, 1e-15);
    for (const Values& got : {values_of<double>(vt), v_ref}) EXPECT_NEAR(got[0], v, 1e-15);
  }
}

TEST(AdamW, FirstStepMovesByTheLearningRate) {
  Tensor p = tensor_of<double>({2}, {1, 1}), m = tensor_of<double>({2}, {0, 0});
  Tensor v = tensor_of<double>({2}, {0, 0});
  Stream stream;
  const AdamWStep step{.learning_rate = 0.25, .epsilon = 0, .weight_decay = 0};
  adamw(p, tensor_of<double>({2}, {30, -0.01}), m, v, decision_of(30, step, stream), {}, step,
        stream);
  expect_close("p", p.span<double>(), Values{0.75, 1.25}, 1e-14);
}

TEST(AdamW, LearningRateZeroMovesOnlyTheMoments) {
  const Values start = random_values("p", 9);
  Tensor p = tensor_of<float>({9}, start), m = Tensor::zeros({9}, DType::kF32);
  Tensor v = Tensor::zeros({9}, DType::kF32);
  const Values before = values_of<float>(p);
  Stream stream;
  const AdamWStep step{.learning_rate = 0};
  adamw(p, tensor_of<float>({9}, random_values("g", 9)), m, v, decision_of(1, step, stream), {},
        step, stream);
  EXPECT_EQ(values_of<float>(p), before);
  for (const double value : values_of<float>(m)) EXPECT_NE(value, 0.0);
  for (const double value : values_of<float>(v)) EXPECT_GT(value, 0.0);
}

template <typename T>
void compare_with_reference(std::int64_t count, double tolerance) {
  Stream stream = test::stream();
  const Shape shape{count};
  Tensor p = tensor_of<T>(shape, random_values("p", count)), m = Tensor::zeros(shape, kDType<T>);
  Tensor v = Tensor::zeros(shape, kDType<T>);
  Values p_ref = values_of<T>(p), m_ref(p_ref.size()), v_ref(p_ref.size());
  const AdamWStep step{.learning_rate = 0.01, .clip_norm = 0.6};
  const Tensor squares = tensor_of<double>({1}, {4});
  const Tensor decision = Tensor::zeros({kDecisionSize}, DType::kF64);
  for (int t = 1; t <= 5; ++t) {
    const Tensor g = tensor_of<T>(shape, random_values("g" + std::to_string(t), count));
    decide_update(squares, {}, decision, {}, step, stream);
    adamw(p, g, m, v, decision, {}, step, stream);
    stream.synchronize();
    reference::adamw<double>(p_ref, values_of<T>(g), m_ref, v_ref, 4, t, step);
  }
  expect_close("p", p.span<T>(), p_ref, tolerance);
  expect_close("m", m.span<T>(), m_ref, tolerance);
  expect_close("v", v.span<T>(), v_ref, tolerance);
}

TEST(AdamW, DoubleMatchesReference) {
  for (const std::int64_t count : {1, 7, 20001}) compare_with_reference<double>(count, 1e-13);
}

// Five steps of some five roundings of 6e-8 of the moments; beta1 and beta2 are rounded too.
TEST(AdamW, FloatMatchesReference) {
  for (const std::int64_t count : {1, 4, 7, 20001}) compare_with_reference<float>(count, 2e-6);
}

TEST(AdamW, AnySplitIntoFloatSpansGivesTheSameBits) {
  Stream stream = test::stream();
  const auto run = [&](const std::vector<std::int64_t>& cuts) {
    Tensor p = tensor_of<float>({1009}, random_values("p", 1009));
    Tensor m = tensor_of<float>({1009}, random_values("m", 1009));
    Tensor v = tensor_of<float>({1009}, Values(1009, 0.5));
    const Tensor g = tensor_of<float>({1009}, random_values("g", 1009));
    const AdamWStep step{.learning_rate = 0.1};
    const Tensor decision = decision_of(1, step, stream, 2);
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
      const auto part = [&](const Tensor& x) { return x.view().slice(cuts[i], cuts[i + 1]); };
      adamw(part(p), part(g), part(m), part(v), decision, {}, step, stream);
    }
    stream.synchronize();
    return values_of<float>(p);
  };
  EXPECT_EQ(run({0, 1009}), run({0, 1, 18, 19, 512, 1000, 1009}));
}

TEST(AdamW, BitsDoNotDependOnTheNumberOfThreads) {
  test::expect_same_bits_for_any_thread_count([] {
    Stream stream;
    Tensor p = tensor_of<float>({50001}, random_values("p", 50001));
    Tensor g = tensor_of<float>({50001}, random_values("g", 50001));
    Tensor m = Tensor::zeros({50001}, DType::kF32), v = Tensor::zeros({50001}, DType::kF32);
    const Tensor squares({1}, DType::kF64);
    sum_of_squares(g, squares, stream);
    const AdamWStep step{.learning_rate = 0.1, .clip_norm = 0.5};
    const Tensor decision = Tensor::zeros({kDecisionSize}, DType::kF64);
    decide_update(squares, {}, decision, {}, step, stream);
    adamw(p, g, m, v, decision, {}, step, stream);
    return std::vector<Tensor>{p, m, v, squares};
  });
}

// What a product would make of the new parameters; views may begin anywhere.
TEST(AdamW, FloatRoundsWhatItWrites) {
  Stream stream = test::stream();
  for (const std::int64_t begin : {0, 1, 2, 3}) {
    const std::int64_t end = begin + 1029;
    Tensor p = tensor_of<float>({1040}, random_values("p", 1040));
    Tensor m = tensor_of<float>({1040}, random_values("m", 1040));
    Tensor v = tensor_of<float>({1040}, Values(1040, 0.5));
    const Tensor g = tensor_of<float>({1040}, random_values("g", 1040));
    const Tensor rounded = tensor_of<BFloat16>({1040}, Values(1040, 7));
    const auto part = [&](const Tensor& x) { return x.view().slice(begin, end); };
    const AdamWStep step{.learning_rate = 0.1};
    adamw(part(p), part(g), part(m), part(v), decision_of(1, step, stream), part(rounded), step,
          stream);
    stream.synchronize();
    for (std::int64_t i = 0; i < 1040; ++i) {
      const bool is_inside = i >= begin && i < end;
      ASSERT_EQ(test::as_double(rounded.data<BFloat16>()[i]),
                is_inside ? test::as_double(BFloat16(p.data<float>()[i])) : 7.0)
          << i;
    }
  }
}

// A norm at the limit is not scaled and one above it is, continuously; without a limit none is. m = 0.1 g from zero.
template <typename T>
void expect_clipping() {
  Stream stream = test::stream();
  const struct {
    double norm, clip_norm, scale;
  } cases[] = {{2, 3, 1}, {3, 3, 1}, {6, 3, 0.5}, {6, 0, 1}, {0, 3, 1}};
  for (const auto& c : cases) {
    Tensor p = tensor_of<T>({5}, Values(5, 1.0)), m = tensor_of<T>({5}, Values(5, 0.0));
    Tensor v = tensor_of<T>({5}, Values(5, 0.0));
    const AdamWStep step{.learning_rate = 0.1, .clip_norm = c.clip_norm};
    adamw(p, tensor_of<T>({5}, Values(5, 1.0)), m, v, decision_of(c.norm, step, stream), {}, step,
          stream);
    stream.synchronize();
    for (const T value : m.span<T>()) EXPECT_NEAR(value, 0.1 * c.scale, 1e-7) << c.norm;
  }
}
TEST(AdamW, DoubleClipsToTheLimit) { expect_clipping<double>(); }
TEST(AdamW, FloatClipsToTheLimit) { expect_clipping<float>(); }

// Numbers that are not finite, or beyond a limit; the limits themselves are within.
struct Refusal {
  double squares;
  std::vector<double> losses;
  UpdateLimits limits = {};
};
const Refusal kRefusals[] = {{kNan, {}},
                             {kInfinity, {1}},
                             {4, {1, kNan}},
                             {4, {kInfinity, 1}},
                             {4, {-kInfinity, 1}},
                             {4, {1, 2}, {.norm = 1.999}},
                             {4, {1, 2}, {.loss = 2.999}},
                             {4, {}, {.loss = -1}}};

template <typename T>
void expect_refused_updates_change_nothing() {
  Stream stream = test::stream();
  const AdamWStep step{.learning_rate = 0.1, .clip_norm = 1};
  // Packets of four and what is left of them.
  for (const std::int64_t count : {3, 4, 1030}) {
    Tensor p = tensor_of<T>({count}, random_values("p", count));
    Tensor m = tensor_of<T>({count}, random_values("m", count));
    Tensor v = tensor_of<T>({count}, Values(static_cast<std::size_t>(count), 0.5));
    const Values before[] = {values_of<T>(p), values_of<T>(m), values_of<T>(v)};
    const Tensor g = tensor_of<T>({count}, random_values("g", count));
    const Tensor rounded = tensor_of<BFloat16>({count}, Values(static_cast<std::size_t>(count), 7));
    const Tensor decision = decision_of(1, step, stream, 4);
    for (const Refusal& refusal : kRefusals) {
      const auto num_losses = static_cast<std::int64_t>(refusal.losses.size());
      const Tensor losses = tensor_of<double>({num_losses}, refusal.losses);
      decide_update(tensor_of<double>({1}, {refusal.squares}), losses, decision, refusal.limits,
                    step, stream);
      adamw(p, g, m, v, decision, rounded, step, stream);
      stream.synchronize();
      EXPECT_EQ(decision.data<double>()[kIsMade], 0);
      EXPECT_EQ(decision.data<double>()[kNumUpdates], 5);  // not counted
      EXPECT_EQ(values_of<T>(p), before[0]) << count;
      EXPECT_EQ(values_of<T>(m), before[1]) << count;
      EXPECT_EQ(values_of<T>(v), before[2]) << count;
      for (const BFloat16 value : rounded.span<BFloat16>()) EXPECT_EQ(test::as_double(value), 7);
    }
    decide_update(tensor_of<double>({1}, {4}), tensor_of<double>({2}, {1, 2}), decision,
                  {.norm = 2, .loss = 3}, step, stream);
    adamw(p, g, m, v, decision, rounded, step, stream);
    stream.synchronize();
    EXPECT_EQ(decision.data<double>()[kNumUpdates], 6);
    EXPECT_NE(values_of<T>(p), before[0]);
  }
}
TEST(AdamW, DoubleRefusedUpdatesChangeNothing) { expect_refused_updates_change_nothing<double>(); }
TEST(AdamW, FloatRefusedUpdatesChangeNothing) { expect_refused_updates_change_nothing<float>(); }

TEST(AdamWErrors, ShapesAndStep) {
  Stream stream;
  Tensor a({4}, DType::kF32), b({5}, DType::kF32);
  const Tensor decision = decision_of(1, {}, stream);
  test::expect_error(ExitCode::kInternal, "gradients has shape [5], expected [4]",
                     [&] { adamw(a, b, a, a, decision, {}, {}, stream); });
  test::expect_error(ExitCode::kInternal, "decision has shape [4], expected [5]",
                     [&] { adamw(a, a, a, a, a, {}, {}, stream); });
  test::expect_error(ExitCode::kInternal, "rounded has shape [5], expected [4]",
                     [&] { adamw(a, a, a, a, decision, b, {}, stream); });
  test::expect_error(ExitCode::kInternal, "squares has shape [4], expected [1]",
                     [&] { decide_update(a, {}, decision, {}, {}, stream); });
  test::expect_error(ExitCode::kInternal, "sum has shape [4], expected [1]",
                     [&] { sum_of_squares(a, a, stream); });
}

TEST(SumOfSquares, FloatMatchesReference) {
  Stream stream = test::stream();
  for (const std::int64_t count : {0, 1, 7, 8192, 30011, 70003}) {
    const Tensor x = tensor_of<float>({count}, random_values("x", count));
    const double expected = reference::sum_of_squares<double>(values_of<float>(x));
    EXPECT_NEAR(squares_of(x, stream), expected, 1e-13 * expected) << count;
  }
  // Squares that leave float's range.
  EXPECT_NEAR(squares_of(tensor_of<float>({2}, {3e30, 4e30}), stream), 2.5e61, 1e55);
}

// Bits depend on the elements, not on where they begin.
TEST(SumOfSquares, FloatViewsMayBeginAnywhere) {
  Stream stream = test::stream();
  const Values values = random_values("x", 40003);
  const double expected = squares_of(tensor_of<float>({40003}, values), stream);
  for (const std::int64_t shift : {1, 2, 3}) {
    Values shifted(values);
    shifted.insert(shifted.begin(), static_cast<std::size_t>(shift), kNan);
    const Tensor x = tensor_of<float>({40003 + shift}, shifted);
    EXPECT_EQ(squares_of(x.view().slice(shift, 40003 + shift), stream), expected) << shift;
  }
}

template <typename T>
void expect_nan_and_infinity_reported() {
  Stream stream = test::stream();
  for (const std::size_t at :
       {std::size_t{0}, std::size_t{8191}, std::size_t{20000}, std::size_t{32768}}) {
    Values values(32769, 1.0);
    values[at] = kNan;
    EXPECT_TRUE(std::isnan(squares_of(tensor_of<T>({32769}, values), stream)));
    values[at] = -kInfinity;
    EXPECT_EQ(squares_of(tensor_of<T>({32769}, values), stream), kInfinity);
  }
}

TEST(SumOfSquares, FloatNanAndInfinityAreReportedAnywhere) {
  expect_nan_and_infinity_reported<float>();
}
TEST(SumOfSquares, DoubleNanAndInfinityAreReportedAnywhere) {
  expect_nan_and_infinity_reported<double>();
}

template <typename T>
void expect_first_place_found() {
  Stream stream = test::stream();
  const auto find = [&](const Values& values) {
    const auto count = static_cast<std::int64_t>(values.size());
    const Tensor partial({(count + kNonFiniteBlock - 1) / kNonFiniteBlock}, DType::kF64);
    const Tensor place = tensor_of<double>({1}, {kNan});
    find_non_finite(tensor_of<T>({count}, values), 100, partial, stream);
    smallest(partial, place, stream);
    stream.synchronize();
    return *place.data<double>();
  };
  EXPECT_EQ(find(Values(20001, 3e38)), kInfinity);
  for (const std::size_t at : {0, 255, 8191, 8192, 20000}) {
    for (const double bad : {kNan, kInfinity, -kInfinity}) {
      Values values(20001, -1.0);
      values[at] = bad;
      values.back() = kNan;
      EXPECT_EQ(find(values), 100.0 + static_cast<double>(at));
      values.resize(at + 1);
      EXPECT_EQ(find(values), 100.0 + static_cast<double>(at));
    }
  }
}
TEST(NonFinite, FloatFirstPlaceIsFound) { expect_first_place_found<float>(); }
TEST(NonFinite, DoubleFirstPlaceIsFound) { expect_first_place_found<double>(); }

}  // namespace
}  // namespace ttt::kernels
