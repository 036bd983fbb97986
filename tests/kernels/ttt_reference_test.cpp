// The reference TTT kernels: gradients by complex step, recorded values, and what the papers prove.

#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <numeric>

#include "kernels/reference/ttt.h"
#include "tests/kernels/ttt_cases.h"

namespace ttt::test {
namespace {

namespace ref = kernels::reference;
using Complex = std::complex<double>;

template <typename To, typename From>
TttTensors<To> convert(TttTensors<From> x) {
  TttTensors<To> result;
  const auto from = members(x);
  const auto to = members(result);
  for (std::size_t i = 0; i < from.size(); ++i) {
    to[i].second->assign(from[i].second->begin(), from[i].second->end());
  }
  return result;
}

class TttReference : public testing::TestWithParam<TttCase> {};

TEST_P(TttReference, BackwardMatchesComplexStep) {
  const TttCase& c = GetParam();
  TttTensors<double> x = make_tensors(c);
  const TttLoss loss = make_loss(c);
  TttTensors<double> d = ref::ttt_backward(c.sizes, c.options, x, loss.d_out, loss.d_final);
  const auto inputs = members(x);
  const auto gradients = members(d);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    TttTensors<Complex> point = convert<Complex>(x);
    expect_gradient("d_" + inputs[i].first, *gradients[i].second, *inputs[i].second,
                    [&](const std::vector<Complex>& values) {
                      *members(point)[i].second = values;
                      return loss_value(ref::ttt_forward(c.sizes, c.options, point), loss);
                    });
  }
}

TEST_P(TttReference, DualFormEqualsPrimalForm) {
  const TttCase& c = GetParam();
  const TttTensors<double> x = make_tensors(c);
  expect_all_close(ref::ttt_forward(c.sizes, c.options, x),
                   ref::ttt_forward_primal(c.sizes, c.options, x), 1e-12);
}

std::vector<TttCase> cases() {
  std::vector<TttCase> result;
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    constexpr std::int64_t kSize = 4;
    for (const std::int64_t tokens : {1L, kSize - 1, kSize, kSize + 1, 2 * kSize + 3}) {
      result.push_back(make_case(model, tokens, kSize, 3, 5));
    }
    result.push_back(make_case(model, 3, 1, 3, 5));   // K = 1
    result.push_back(make_case(model, 5, 16, 3, 5));  // K > T
    TttCase no_norm = make_case(model, 11, 4, 3, 5);
    no_norm.options.inner_norm = false;
    no_norm.name += "NoNorm";
    result.push_back(no_norm);
    TttCase no_bias = make_case(model, 11, 4, 3, 5);
    no_bias.options.bias = false;
    no_bias.name += "NoBias";
    result.push_back(no_bias);
    TttCase neither = no_norm;
    neither.options.bias = false;
    neither.name += "NoBias";
    result.push_back(neither);
    TttCase batch = make_case(model, 6, 4, 1, 1);  // one feature, two sequences
    batch.sizes.batch = 2;
    batch.name += "B2";
    result.push_back(batch);
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(Cases, TttReference, testing::ValuesIn(cases()),
                         [](const auto& tested) { return tested.param.name; });

TEST(TttReferenceLaws, DualFormEqualsPrimalFormForEveryMiniBatchSize) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    for (const std::int64_t size : {1, 2, 16, 33}) {
      const TttCase c = make_case(model, 33, size, 8, 12);
      const TttTensors<double> x = make_tensors(c);
      expect_all_close(ref::ttt_forward(c.sizes, c.options, x),
                       ref::ttt_forward_primal(c.sizes, c.options, x), 1e-12);
    }
  }
}

/// val(seed, n) of the recorded lines.
std::vector<double> recorded_input(int seed, int count) {
  std::vector<double> values(count);
  for (int i = 0; i < count; ++i) values[i] = 0.5 * std::sin(1.7 * i + 0.61 * seed + 0.3);
  return values;
}

double sum_of_magnitudes(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0,
                         [](double sum, double x) { return sum + std::abs(x); });
}

/// The common part of the recorded inputs: 2 mini-batches of 3 tokens, 4 features.
struct Recorded {
  TttCase c;
  TttTensors<double> x;
  TttLoss loss;
  std::vector<double> sigmoid;

  explicit Recorded(InnerModel model) : c(make_case(model, 6, 3, 4, 16)) {
    c.sizes.heads = 1;
    x.q = recorded_input(12, 24);
    x.k = recorded_input(13, 24);
    x.v = recorded_input(14, 24);
    x.norm_weight = recorded_input(15, 4);
    for (double& value : x.norm_weight) value += 1;
    x.norm_bias = recorded_input(16, 4);
    for (const double logit : recorded_input(17, 6)) {
      sigmoid.push_back(1 / (1 + std::exp(-logit)));
      x.token_lr.push_back(sigmoid.back() / 4);
    }
    x.token_scale = recorded_input(18, 3);
    for (int i = 0; i < 3; ++i) x.token_scale[i] += 1.0 / (i + 1);
    loss.d_out = recorded_input(19, 24);
  }

  // The records append the bias as the last row of the weights.
  static void split(const std::vector<double>& both, std::int64_t columns, std::vector<double>& w,
                    std::vector<double>& b) {
    w.assign(both.begin(), both.end() - columns);
    b.assign(both.end() - columns, both.end());
  }

  void check(double sum, double magnitude, double value, const std::vector<double>& d_magnitudes) {
    const TttOutputs<double> y = ref::ttt_forward(c.sizes, c.options, x);
    TttTensors<double> d = ref::ttt_backward(c.sizes, c.options, x, loss.d_out, loss.d_final);
    constexpr double kDigits = 2e-9;  // nine decimals are recorded
    EXPECT_NEAR(std::accumulate(y.out.begin(), y.out.end(), 0.0), sum, kDigits);
    EXPECT_NEAR(sum_of_magnitudes(y.out), magnitude, kDigits);
    EXPECT_NEAR(loss_value(y, loss), value, kDigits);
    for (std::size_t i = 0; i < d.token_lr.size(); ++i) {
      d.token_lr[i] *= x.token_lr[i] * (1 - sigmoid[i]);
    }
    std::vector<double> actual;
    for (const auto* part :
         {&d.q, &d.k, &d.v, &d.token_lr, &d.token_scale, &d.norm_weight, &d.norm_bias}) {
      actual.push_back(sum_of_magnitudes(*part));
    }
    actual.push_back(sum_of_magnitudes(d.initial.w1) + sum_of_magnitudes(d.initial.b1));
    if (!d.initial.w2.empty()) {
      actual.push_back(sum_of_magnitudes(d.initial.w2) + sum_of_magnitudes(d.initial.b2));
    }
    ASSERT_EQ(actual.size(), d_magnitudes.size());
    for (std::size_t i = 0; i < actual.size(); ++i)
      EXPECT_NEAR(actual[i], d_magnitudes[i], kDigits);
  }
};

TEST(TttReferenceLaws, LinearMatchesRecordedValues) {
  Recorded r(InnerModel::kLinear);
  Recorded::split(recorded_input(11, 20), 4, r.x.initial.w1, r.x.initial.b1);
  Recorded::split(recorded_input(20, 20), 4, r.loss.d_final.w1, r.loss.d_final.b1);
  r.check(4.932513127, 22.050133913, -1.947529041,
          {13.359220510, 6.107447268, 7.063216519, 1.014215742, 2.791548124, 5.829405858,
           4.577194324, 30.859880246});
}

TEST(TttReferenceLaws, MlpMatchesRecordedValues) {
  Recorded r(InnerModel::kMlp);
  Recorded::split(recorded_input(21, 80), 16, r.x.initial.w1, r.x.initial.b1);
  Recorded::split(recorded_input(22, 68), 4, r.x.initial.w2, r.x.initial.b2);
  Recorded::split(recorded_input(23, 80), 16, r.loss.d_final.w1, r.loss.d_final.b1);
  Recorded::split(recorded_input(24, 68), 4, r.loss.d_final.w2, r.loss.d_final.b2);
  r.check(4.945976889, 22.114317004, 2.186086159,
          {6.974655568, 9.195718809, 10.002813974, 0.998547311, 2.655927731, 7.322275865,
           8.196897558, 45.417819797, 72.919453699});
}

/// A linear learner without norm and bias, started at zero, all scales one.
struct PlainLinear {
  TttCase c;
  TttTensors<double> x;

  PlainLinear(std::int64_t tokens, std::int64_t mini_batch_size)
      : c(make_case(InnerModel::kLinear, tokens, mini_batch_size, 5, 0)) {
    c.sizes.heads = 1;
    c.options.inner_norm = false;
    c.options.bias = false;
    x = make_tensors(c);
    std::ranges::fill(x.token_scale, 1.0);
    std::ranges::fill(x.initial.w1, 0.0);
  }
};

// arXiv:2407.04620 theorem 1.
TEST(TttReferenceLaws, OneMiniBatchFromZeroIsLinearAttention) {
  PlainLinear p(7, 7);
  std::ranges::fill(p.x.token_lr, 1.0);
  std::vector<double> expected(p.x.q.size());
  for (int t = 0; t < 7; ++t) {
    for (int s = 0; s <= t; ++s) {
      double q_dot_k = 0;
      for (int f = 0; f < 5; ++f) q_dot_k += p.x.q[t * 5 + f] * p.x.k[s * 5 + f];
      for (int f = 0; f < 5; ++f) expected[t * 5 + f] += q_dot_k * p.x.v[s * 5 + f];
    }
  }
  expect_close("out", ref::ttt_forward(p.c.sizes, p.c.options, p.x).out, expected, 1e-13);
}

TEST(TttReferenceLaws, MiniBatchesOfOneAreTheDeltaRule) {
  PlainLinear p(7, 1);
  std::vector<double> expected(p.x.q.size());
  std::vector<double> s(25);
  for (int t = 0; t < 7; ++t) {
    for (int j = 0; j < 5; ++j) {
      double error = p.x.v[t * 5 + j];
      for (int i = 0; i < 5; ++i) error -= p.x.k[t * 5 + i] * s[i * 5 + j];
      for (int i = 0; i < 5; ++i) s[i * 5 + j] += p.x.token_lr[t] * p.x.k[t * 5 + i] * error;
      for (int i = 0; i < 5; ++i) expected[t * 5 + j] += p.x.q[t * 5 + i] * s[i * 5 + j];
    }
  }
  const TttOutputs<double> y = ref::ttt_forward(p.c.sizes, p.c.options, p.x);
  expect_close("out", y.out, expected, 1e-13);
  expect_close("final w1", y.final_state.w1, s, 1e-13);
}

TEST(TttReferenceLaws, LaterTokensDoNotChangeEarlierOutputs) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    const TttCase c = make_case(model, 11, 4, 3, 5);
    TttTensors<double> x = make_tensors(c);
    const std::vector<double> before = ref::ttt_forward(c.sizes, c.options, x).out;
    const std::int64_t row = c.sizes.heads * c.sizes.features;
    for (auto* changed : {&x.q, &x.k, &x.v}) {
      for (std::int64_t i = 6 * row; i < 11 * row; ++i) (*changed)[i] += 1;
    }
    const std::vector<double> after = ref::ttt_forward(c.sizes, c.options, x).out;
    EXPECT_TRUE(std::equal(before.begin(), before.begin() + 6 * row, after.begin()));
    EXPECT_NE(before[6 * row], after[6 * row]);
  }
}

}  // namespace
}  // namespace ttt::test
